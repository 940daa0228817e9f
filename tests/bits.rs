//! Checks the hashes in `tests/bits.toml`, which holds every hash that tests and docs quote. Each command must give its
//! hash, and each hash must appear in the files that are listed, and in no other.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use support::{as_they_are, hash, run, said, succeed};
use tempfile::TempDir;

const FILE: &str = "tests/bits.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bits {
    job: Vec<Job>,
}

/// A job, and the bits that it ends in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    name: String,
    command: String,
    #[serde(default)]
    each_instruction_set: bool,
    /// A preset, which the job trains on images that are not augmented.
    #[serde(default)]
    not_augmented: Option<String>,
    weights_sha256: String,
    quoted_in: Vec<PathBuf>,
    /// Earlier hashes, and why they changed.
    #[allow(dead_code, reason = "it is for people")]
    changes: Vec<Change>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it is for people")]
struct Change {
    from: String,
    why: String,
}

fn jobs() -> Vec<Job> {
    let text = std::fs::read_to_string(FILE).unwrap();
    toml::from_str::<Bits>(&text).unwrap_or_else(|error| panic!("{FILE}: {error}")).job
}

/// The hash that a command ends in, if this machine can run it.
fn bits_of(command: &str, not_augmented: Option<&str>) -> Option<String> {
    let folder = TempDir::new().unwrap();
    let (out, model) = (folder.path().join("run"), folder.path().join("model.toml"));
    let mut paths = vec![("--out", out.as_path())];
    if let Some(preset) = not_augmented {
        let text = std::fs::read_to_string(format!("models/{preset}.toml")).unwrap();
        std::fs::write(&model, as_they_are(&text)).unwrap();
        paths.push(("--model", &model));
    }
    let output = run(command, &paths);
    if command.contains("--isa") && output.status.code() == Some(2) {
        assert!(said(&output).contains("is not available on this machine"), "{}", said(&output));
        return None;
    }
    assert!(output.status.success(), "convoy {command}: {}", said(&output));
    Some(hash(&out))
}

#[test]
fn each_command_ends_in_its_bits() {
    for job in jobs() {
        let Job { name, command, weights_sha256, not_augmented, .. } = job;
        let found_by = |command: &str| bits_of(command, not_augmented.as_deref());
        if job.each_instruction_set {
            let sets = ["scalar", "avx2", "avx512", "neon"];
            let found: Vec<_> = sets.iter().filter_map(|isa| found_by(&format!("{command} --isa {isa}"))).collect();
            assert!(!found.is_empty() && found.iter().all(|found| *found == weights_sha256), "{name}: {found:?}");
        } else {
            assert_eq!(found_by(&command).unwrap(), weights_sha256, "{name}: convoy {command}");
        }
    }
}

/// The control: a comparison that can't fail compares nothing.
#[test]
fn another_seed_ends_in_other_bits() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let job = jobs().into_iter().find(|job| job.each_instruction_set).unwrap();
    succeed(&format!("{} --seed 2", job.command), &[("--out", &out)]);
    assert_ne!(hash(&out), job.weights_sha256);
}

#[test]
fn hashes_are_quoted_where_the_file_says_and_nowhere_else() {
    let jobs = jobs();
    let mut files = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    for folder in ["docs", "deploy", "benches", "tests", "models", "src", "common", "coordinator", "worker", "proto"] {
        add_files(Path::new(folder), &mut files);
    }
    // The file of hashes itself, files of another library's results, and reports of studies, which tests/study.rs checks, hold other
    // hashes.
    let is_text = |path: &Path| {
        path != Path::new(FILE)
            && !path.starts_with("docs/studies")
            && !path.extension().is_some_and(|kind| ["json", "gz", "png"].iter().any(|k| kind == *k))
    };
    for path in files.iter().filter(|path| is_text(path)) {
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| is_hash(word)) {
            let job = jobs.iter().find(|job| job.weights_sha256 == word);
            assert!(
                job.is_some_and(|job| job.quoted_in.contains(path)),
                "{} quotes {word}; {FILE} doesn't say so",
                path.display()
            );
        }
    }
    for job in &jobs {
        assert!(is_hash(&job.weights_sha256), "{}", job.name);
        for path in &job.quoted_in {
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(&job.weights_sha256), "{} doesn't quote the hash of {}", path.display(), job.name);
        }
    }
}

/// Adds all files below a folder.
fn add_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { add_files(&path, files) } else { files.push(path) }
    }
}

fn is_hash(word: &str) -> bool {
    word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
