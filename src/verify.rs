//! `convoy verify`: checks the checkpoints of a run, and prints one line for each. The exit code is the answer.

use std::error::Error;
use std::path::PathBuf;

use convoy_common::chain::chain;
use convoy_coordinator::checkpoint::folder::verify;
use serde_json::json;

use crate::{Outcome, output};

/// The command line of `convoy verify`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a run, or of a checkpoint
    path: PathBuf,
    /// Print one JSON object per checkpoint instead of text
    #[arg(long)]
    json: bool,
}

/// Some checkpoints are damaged. The lines before say which.
#[derive(Debug, thiserror::Error)]
#[error("damaged checkpoints: {damaged} of {all}")]
struct Damaged {
    damaged: usize,
    all: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let found = verify(&arguments.path)?;
    let (mut damaged, all) = (0, found.len());
    for (path, checked) in found {
        let (path, error) = (path.display().to_string(), checked.as_ref().err().map(|error| chain(error)));
        let hash = checked.ok();
        let line = match (&hash, &error) {
            _ if arguments.json => {
                json!({ "path": path, "sound": error.is_none(), "weights_sha256": hash, "error": error }).to_string()
            }
            (Some(hash), _) => format!("sound    {path}  weights_sha256 {hash}"),
            (None, error) => format!("damaged  {path}  {}", error.clone().unwrap_or_default()),
        };
        output::print(&format!("{line}\n"))?;
        damaged += usize::from(error.is_some());
    }
    if damaged > 0 { Err(Damaged { damaged, all }.into()) } else { Ok(Outcome::Done) }
}
