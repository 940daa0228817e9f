//! Studies: experiments that compare networks over many runs. A study's file says what is compared; the runs are ordinary jobs, which
//! `convoy train` carries out in processes of their own; and a report says what came out, and how sure that is.
//!
//! Not here: training (the coordinator and its workers), and printing (the program).
#![forbid(unsafe_code)]

pub mod arm;
pub mod builtin;
pub mod conduct;
pub mod costs;
pub mod design;
pub mod error;
pub mod file;
pub mod folder;
pub mod identity;
pub mod images;
pub mod measured;
mod model;
pub mod perform;
pub mod place;
mod process;
pub mod rates;
pub mod report;
pub mod represent;
pub mod representation;
mod run;
mod series;
pub mod statistics;
pub mod tune;
pub mod vary;
