//! Studies: experiments that compare networks over many runs. A study's file says what is compared; the runs are ordinary jobs, which
//! `convoy train` carries out in processes of their own; and a report says what came out, and how sure that is.
//!
//! Not here: training (the coordinator and its workers), and printing (the program).
#![forbid(unsafe_code)]

pub mod statistics;
