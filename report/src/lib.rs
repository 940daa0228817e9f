//! Reports that people look at in a browser: the frame of a page, charts, and pictures made of pixels. A page is one file, which needs no
//! network and no script, and can be printed.
//!
//! Not here: studies, which have reports of their own made of these parts.
#![forbid(unsafe_code)]

pub mod html;
pub mod raster;
pub mod svg;
pub mod words;
