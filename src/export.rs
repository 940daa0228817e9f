//! `convoy export`: writes trained weights as a file for other programs.

use std::error::Error;
use std::path::{Path, PathBuf};

use convoy_common::chain::chain;
use convoy_common::model::Network;
use convoy_common::parameters::sha256;
use convoy_coordinator::files::write_atomically;
use convoy_coordinator::outputs;
use convoy_coordinator::weights::{Loaded, load};
use serde_json::json;

use crate::settings::{Misuse, model_text};
use crate::{Outcome, output};

/// The command line of `convoy export`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a checkpoint, folder of a run (its newest sound checkpoint is used), or a safetensors file
    path: PathBuf,
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file; required for a safetensors file outside a
    /// checkpoint
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Write the network to this ONNX file. If the file exists, it is replaced only if convoy wrote it; otherwise the command fails
    #[arg(long, value_name = "FILE", required = true)]
    onnx: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    check_path(&arguments.onnx)?;
    let model = arguments.model.as_deref().map(model_text).transpose()?;
    let Loaded { text, path, weights, damaged, .. } = load(&arguments.path, model)?;
    damaged.iter().for_each(|error| output::complain(&format!("note: {}; using {}", chain(error), path.display())));
    let network = Network::parse(&text)?;
    let bytes = convoy_onnx::file(&network, &weights)?;
    write_atomically(&arguments.onnx, &bytes)
        .map_err(|error| format!("cannot write {}: {error}", arguments.onnx.display()))?;
    let (hash, shape) = (sha256(&weights), network.input.shape);
    output::print(&if arguments.json {
        let (file, weights) = (arguments.onnx.display().to_string(), path.display().to_string());
        let object = json!({ "file": file, "bytes": bytes.len(), "model": network.name, "weights": weights, "weights_sha256": hash });
        format!("{object:#}\n")
    } else {
        format!(
            "model    {}\nweights  {} ({hash})\ninput    {}: bytes (N, {}, {}, {}), as in the data set\noutput   {}: floats (N, {})\nfile     {} \
             ({} bytes)\n",
            network.name,
            path.display(),
            convoy_onnx::IMAGES,
            shape.channels,
            shape.height,
            shape.width,
            convoy_onnx::LOGITS,
            network.classes(),
            arguments.onnx.display(),
            bytes.len(),
        )
    })?;
    Ok(Outcome::Done)
}

/// Checks that the file may be written, before the work.
fn check_path(path: &Path) -> Result<(), Misuse> {
    let is_ours = |path: &Path| {
        outputs::beginning(path, convoy_onnx::BEGINNING_BYTES).is_some_and(|bytes| convoy_onnx::is_ours(&bytes))
    };
    outputs::check(path, "an ONNX file that convoy wrote", is_ours)
        .map_err(|why| Misuse(format!("--onnx: cannot write {}: {why}", path.display())))
}
