//! `convoy predict`: parses the command line, classifies images, and prints the result.

use std::error::Error;
use std::path::PathBuf;

use convoy_common::batch::THREADS_MAX;
use convoy_common::text::printable;
use convoy_coordinator::predict::{Predicting, Prediction, predict};
use convoy_coordinator::running::Running;

use crate::eval::{Quiet, running, views};
use crate::log::Log;
use crate::numbers::{AT_LEAST_1, whole};
use crate::{Outcome, output, settings, signals};

/// The command line of `convoy predict`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a checkpoint, folder of a run (its newest sound checkpoint is used), or a safetensors file
    path: PathBuf,
    /// JPEG or PNG files, folders of such files, or - for an image on standard input
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file; required for a safetensors file outside a
    /// checkpoint
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Classes to list for each image
    #[arg(long, value_name = "N", default_value = "3", value_parser = whole::<usize>(AT_LEAST_1))]
    top: usize,
    /// Compute threads of each worker that this command starts [default: the machine's cores divided by the workers]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    threads: Option<usize>,
    /// Average the class probabilities of ten views of each image: the corners and the centre of the scaled image, and their mirror images. The
    /// model's input must have a resize that is larger than its shorter side
    #[arg(long)]
    ten_crop: bool,
    /// Print a JSON list instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    let predicting = Predicting {
        path: arguments.path,
        model: arguments.model.as_deref().map(settings::model_text).transpose()?,
        images: arguments.images,
        top: arguments.top,
        views: views(arguments.ten_crop),
        running: Running { threads: arguments.threads, ..running(log)? },
    };
    let stop = signals::stop_flag("stopping", "quit".to_owned())?;
    // Notes go to standard error, because standard output may be read by a program.
    let found = predict(predicting, &mut Quiet::new(true), &stop)?;
    let text = if arguments.json {
        format!("{:#}\n", serde_json::to_value(&found)?)
    } else {
        found.iter().map(line).collect()
    };
    output::print(&text)?;
    Ok(Outcome::Done)
}

fn line(prediction: &Prediction) -> String {
    let classes = prediction.classes.iter();
    let classes: Vec<String> =
        classes.map(|likely| format!("{} {:.1} %", printable(&likely.class), likely.probability * 100.0)).collect();
    format!("{}  {}\n", printable(&prediction.image.display().to_string()), classes.join(", "))
}
