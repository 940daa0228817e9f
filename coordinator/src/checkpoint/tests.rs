//! Damage to checkpoints is found, and older ones are used and deleted as promised.

use convoy_common::model::Network;
use tempfile::TempDir;

use super::folder::{Opened, has_any, open, open_newest, prune, verify};
use super::*;
use crate::job::Asked;

const MODEL: &str = "name = \"tiny\"\ntowers = 1\ninput = { channels = 1, height = 1, width = 2 }\n\
                     [[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = 2\n";

/// Writes the checkpoint of a step into the folder of a run. Returns its path.
fn write_step(run: &Path, step: u64, last_step: u64) -> PathBuf {
    let network = Network::parse(MODEL).unwrap();
    let asked = Asked { model: Some(MODEL.to_owned()), ..Asked::default() };
    let (job, _) = asked.resolve(None, "data".to_owned(), None, |_| 10).unwrap();
    let progress = Progress { step, epoch_images: step * job.batch as u64, ..Progress::default() };
    let described = Described {
        job,
        last_step,
        progress,
        source: None,
        reading: None,
        classes: Vec::new(),
        colours: None,
        test_images: None,
    };
    let state = JobState { weights: network.initial_weights(step, step), momentum: network.zeros() };
    fs::create_dir_all(run.join(FOLDER)).unwrap();
    write(&run.join(FOLDER), &described, &state).unwrap()
}

fn steps(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join(FOLDER)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn each_single_byte_that_changes_is_found() {
    let run = TempDir::new().unwrap();
    let path = write_step(run.path(), 3, 9);
    let whole = read(&path).unwrap();
    let mut flipped = 0;
    for name in [WEIGHTS, OPTIMIZER, MANIFEST, MANIFEST_SHA256] {
        let file = path.join(name);
        let sound = fs::read(&file).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&file, &bytes).unwrap();
            assert!(read(&path).is_err(), "byte {at} of {name}");
            flipped += 1;
        }
        fs::write(&file, &sound).unwrap();
    }
    assert!(flipped > 1000, "{flipped}");
    assert_eq!(read(&path).unwrap().manifest, whole.manifest);
}

/// The sums of the files are right, but no job has such a manifest.
#[test]
fn a_manifest_of_an_impossible_job_is_damaged_and_the_checkpoint_before_it_is_used() {
    let run = TempDir::new().unwrap();
    write_step(run.path(), 1, 9);
    let path = write_step(run.path(), 2, 9);
    let sound: serde_json::Value = serde_json::from_slice(&fs::read(path.join(MANIFEST)).unwrap()).unwrap();
    let write = |key: &str, value: serde_json::Value| {
        let mut manifest = sound.clone();
        *manifest.pointer_mut(key).unwrap() = value;
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
        fs::write(path.join(MANIFEST), &bytes).unwrap();
        fs::write(path.join(MANIFEST_SHA256), sha256_line(&bytes)).unwrap();
    };
    write("/last_step", 8.into());
    assert_eq!(read(&path).unwrap().manifest.last_step, 8, "another value that is allowed");
    let cases = [
        ("/job/batch", 0.into(), "batch is 0"),
        ("/job/slots", 0.into(), "slots is 0"),
        ("/job/slots", 65.into(), "slots is 65"),
        ("/job/lr", 0.into(), "lr is 0"),
        ("/job/span/steps", 0.into(), "span.steps is 0"),
        ("/last_step", 1.into(), "progress.step is 2; it must be 0 to 1"),
        ("/last_step", u64::MAX.into(), "last_step is 18446744073709551615"),
        ("/progress/step", u64::MAX.into(), "progress.step is 18446744073709551615"),
        ("/progress/step", 0.into(), "progress.epoch_images is 128; it must be 0"),
        ("/progress/epoch_images", u64::MAX.into(), "it must be 128: 2 steps of the epoch with 64 images each"),
        ("/progress/epoch_loss_sum", (-1).into(), "progress.epoch_loss_sum is -1"),
        ("/progress/train_loss", (-4).into(), "progress.train_loss is -4"),
        ("/progress/test_accuracy", 5.into(), "progress.test_accuracy is 5"),
        ("/files", serde_json::json!({}), "the manifest says nothing"),
        ("/job/schedule", "one\u{1b}[31mcycle".into(), "unknown schedule"),
        ("/weights_sha256", "\u{1b}[31mred".into(), "says that weights_sha256 is "),
    ];
    for (key, value, part) in cases {
        write(key, value);
        let error = convoy_common::chain::chain(&read(&path).unwrap_err());
        let names_file = error.contains("is damaged") || error.contains("is not a manifest");
        assert!(names_file && error.contains(part) && !error.contains('\u{1b}'), "{key}: {error}");
        let Opened { checkpoint, damaged } = open(run.path()).unwrap();
        assert_eq!((checkpoint.manifest.progress.step, damaged.len()), (1, 1), "{key}");
    }
}

#[test]
fn the_newest_sound_checkpoint_is_used_and_damaged_ones_are_reported() {
    let run = TempDir::new().unwrap();
    assert!(open_newest(run.path()).unwrap().is_none() && !has_any(run.path()).unwrap());
    let [_, second, third] = [1, 2, 3].map(|step| write_step(run.path(), step, 9));
    fs::write(third.join(WEIGHTS), b"").unwrap();
    fs::remove_file(second.join(MANIFEST)).unwrap();
    let Opened { checkpoint, damaged } = open(run.path()).unwrap();
    assert_eq!((checkpoint.manifest.progress.step, damaged.len()), (1, 2));
    assert!(damaged[0].to_string().contains("step-000003/weights.safetensors is damaged"), "{}", damaged[0]);
    assert!(open(&third).is_err(), "a checkpoint that is named is the one that is meant");
    let checked: Vec<_> = verify(run.path()).unwrap().into_iter().map(|(_, checked)| checked.is_ok()).collect();
    assert_eq!(checked, [true, false, false]);
    fs::remove_file(run.path().join(FOLDER).join("step-000001").join(WEIGHTS)).unwrap();
    let CheckpointError::NoneSound { source, .. } = open(run.path()).unwrap_err() else { panic!("none is sound") };
    assert!(source.to_string().contains("step-000003/weights.safetensors is damaged"), "{source}");
}

#[test]
fn older_checkpoints_are_deleted_but_not_the_end_of_a_job() {
    let run = TempDir::new().unwrap();
    for (step, last_step) in [(1, 9), (2, 2), (3, 9), (4, 9), (5, 9)] {
        write_step(run.path(), step, last_step);
    }
    let checkpoints = run.path().join(FOLDER);
    for left in [".step-000007.tmp", ".step-000001.old"] {
        fs::create_dir(checkpoints.join(left)).unwrap();
    }
    prune(&checkpoints, 2).unwrap();
    assert_eq!(steps(run.path()), ["step-000002", "step-000004", "step-000005"]);
    prune(&checkpoints, 1).unwrap();
    assert_eq!(steps(run.path()), ["step-000002", "step-000005"]);
}
