//! Reports that people look at in a browser: the report of a run ([`run`]), and the parts of which all reports are made: the frame of a
//! page, charts, and pictures made of pixels. A page is one file, which needs no network and no script, and can be printed.
//!
//! Not here: studies, whose reports are made of the same parts.
#![forbid(unsafe_code)]

pub mod binomial;
pub mod filters;
pub mod html;
pub mod raster;
pub mod run;
pub mod svg;
pub mod words;
