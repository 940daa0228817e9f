//! x
use std::error::Error;
use crate::Outcome;
/// x
#[derive(clap::Args)]
pub(crate) struct Arguments {}
pub(crate) fn run(_: Arguments) -> Result<Outcome, Box<dyn Error>> { Ok(Outcome::Done) }
