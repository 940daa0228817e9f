//! The files of a run: checkpoints, records and traces, each read as the commands read them.

use std::path::Path;
use std::sync::LazyLock;

use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_coordinator::checkpoint::{self, correspondence::Correspondence, folder};
use convoy_coordinator::record::TRACE;
use convoy_coordinator::trace::account::account;
use convoy_coordinator::trace::file;
use convoy_report::run::records::Records;
use sha2::{Digest, Sha256};

use crate::messages::MODEL;
use crate::sets::with_files;
use crate::{check_text, checked};

static NETWORK: LazyLock<Network> = LazyLock::new(|| Network::parse(MODEL).expect("a sound model"));

/// Reads the bytes as a file of weights: all of them, and some under other names.
pub fn open_weights(bytes: &[u8]) {
    with_files(&[("weights.safetensors", bytes)], |folder| {
        let path = folder.join("weights.safetensors");
        if let Some(weights) = checked(checkpoint::read_weights(&path, &NETWORK)) {
            assert_eq!(weights.len(), NETWORK.parameters().len());
        }
        let except = Correspondence { except: vec!["fc3".to_owned()], ..Correspondence::default() };
        checked(checkpoint::read_some_weights(&path, &NETWORK, &except));
    });
}

/// Reads a checkpoint whose manifest is the bytes up to the first zero, and whose weights are those behind it. The sum of the manifest is
/// right, so that the fuzzer gets beyond it.
pub fn open_checkpoint(bytes: &[u8]) {
    let (manifest, weights) = parted(bytes);
    let sum: String = Sha256::digest(manifest).iter().map(|byte| format!("{byte:02x}")).collect();
    let files = [
        ("manifest.json", manifest),
        ("manifest.sha256", sum.as_bytes()),
        ("weights.safetensors", weights),
        ("optimizer.safetensors", weights),
    ];
    with_files(&files, |folder| {
        if let Some(manifest) = checked(checkpoint::read_manifest(folder)) {
            manifest.remembered_data();
        }
        if let Some(opened) = checked(folder::open(folder)) {
            opened.damaged.iter().for_each(|error| check_text(&error.to_string()));
        }
    });
}

/// Reads the records of a run: `run.json` up to the first zero, and the metrics behind it.
pub fn open_records(bytes: &[u8]) {
    let (record, metrics) = parted(bytes);
    with_files(&[("run.json", record), ("metrics.jsonl", metrics)], |folder| {
        if let Some(records) = checked(Records::read(folder)) {
            records.settings();
        }
    });
}

/// Reads a trace, and accounts for the time of its steps.
pub fn open_trace(bytes: &[u8]) {
    with_files(&[(TRACE, bytes)], |folder| read_trace(&folder.join(TRACE)));
}

fn read_trace(path: &Path) {
    let Some(trace) = checked(file::read(path)) else { return };
    let Some(network) = checked(Network::parse(&trace.about.model)) else { return };
    let Some(plan) = checked(Plan::placed(network, trace.about.placement.clone())) else { return };
    account(&trace, &plan.linked(trace.about.links.clone()), None);
}

fn parted(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}
