//! A folder of image files as people have them: trained on any number of workers, continued after a kill, and refused or used without
//! the files that can't be used.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::{Start, run, said, succeed};
use tempfile::TempDir;

/// Sizes of the images, (width, height). None is that of the model's input.
const SIZES: [(u32, u32); 4] = [(20, 14), (14, 20), (33, 40), (17, 17)];

/// A model for images of 12 x 12, with two towers and every transform.
const MODEL: &str = r#"
name = "own"
towers = 2
input = { channels = 3, height = 12, width = 12, resize = 14, crop = "random", pad = 2, mirror = true }

[[layer]]
kind = "conv"
name = "conv1"
filters = 8
kernel = 3

[[layer]]
kind = "relu"

[[layer]]
kind = "linear"
name = "fc"
units = 3
"#;

fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let bytes: Vec<u8> = (0..height)
        .flat_map(|row| (0..width).map(move |column| (row, column)))
        .flat_map(|(r, c)| pixel(r, c))
        .collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
    file
}

/// Three classes, each with images of its own colour, and a model.
struct Own {
    folder: TempDir,
}

impl Own {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for (class, name) in ["blue", "green", "red"].into_iter().enumerate() {
            let inside = folder.path().join("set").join(name);
            fs::create_dir_all(&inside).unwrap();
            for number in 0..30u32 {
                let (width, height) = SIZES[number as usize % SIZES.len()];
                let pixel = |row: u32, column: u32| {
                    let mut pixel = [((row * 7 + column * 13 + number * 5) % 90) as u8; 3];
                    pixel[2 - class] += 120;
                    pixel
                };
                fs::write(inside.join(format!("{number}.png")), png(width, height, pixel)).unwrap();
            }
        }
        fs::write(folder.path().join("own.toml"), MODEL).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, flags: &str, out: &str) -> Value {
        let paths: &[(&str, &Path)] =
            &[("--model", &self.path("own.toml")), ("--data", &self.path("set")), ("--out", &self.path(out))];
        succeed(&format!("train --batch 8 --trace off {flags}"), paths);
        serde_json::from_str(&fs::read_to_string(self.path(out).join("run.json")).unwrap()).unwrap()
    }
}

fn hash(run: &Value) -> &str {
    run["final"]["weights_sha256"].as_str().unwrap()
}

#[test]
fn the_bits_depend_on_the_seed_and_not_on_workers_or_on_when_a_job_continued() {
    let own = Own::new();
    let alone = own.train("--epochs 3 --workers 1", "alone");
    let accuracy = alone["final"]["test_accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.9, "colours are easy to tell apart, and the accuracy is {accuracy}");
    for workers in [2, 4] {
        let several = own.train(&format!("--epochs 3 --workers {workers}"), &format!("several-{workers}"));
        assert_eq!(hash(&several), hash(&alone), "{workers} workers");
    }
    // From a checkpoint in the middle of the second epoch, which has eleven steps.
    let whole = own.train("--epochs 3 --checkpoint-every 15 --keep 9", "whole");
    assert_eq!(hash(&whole), hash(&alone));
    let (half, out) = (own.path("whole/checkpoints/step-000015"), own.path("continued"));
    succeed("train --trace off", &[("--resume", &half), ("--out", &out)]);
    assert_eq!(support::hash(&out), hash(&alone));
    // The negative control: with the same initial weights and order of images, another seed draws other crops.
    let other = own.train("--epochs 3 --seed 2 --init-seed 1 --order-seed 1", "other");
    assert_ne!(hash(&other), hash(&alone), "crops and mirror images follow from the seed");
}

/// Bytes of memory for images, threads that decode, and workers.
const LEFT_ON_DISK: [(&str, &str, &str); 4] = [("0", "1", "1"), ("0", "4", "2"), ("44K", "2", "4"), ("44K", "1", "2")];

#[test]
fn the_bits_do_not_depend_on_where_images_are_kept_or_on_who_decodes_them() {
    let own = Own::new();
    let in_memory = own.train("--epochs 3", "in-memory");
    let preparing = |run: &Value, what: &str| run["preparing"][what].as_f64().unwrap();
    assert_eq!((preparing(&in_memory, "images"), preparing(&in_memory, "image_wait_seconds")), (90.0, 0.0));
    for (number, (memory, threads, workers)) in LEFT_ON_DISK.into_iter().enumerate() {
        let flags = format!("--epochs 3 --data-memory {memory} --data-threads {threads} --workers {workers}");
        let left = own.train(&flags, &format!("left-{number}"));
        assert_eq!(hash(&left), hash(&in_memory), "{flags}");
        // Each image that is left on disk is decoded once before the job begins and once an epoch, for training or for a measurement.
        let decoded = preparing(&left, "images");
        assert!(
            if memory == "0" { decoded == 90.0 * 4.0 } else { (91.0..360.0).contains(&decoded) },
            "{flags}: {decoded}"
        );
    }
    // The measurement of the test images does not depend on it, either.
    let measured = |flags: &str| -> Value {
        serde_json::from_str(&succeed(&format!("eval --json {flags} {}", own.path("in-memory").display()), &[]))
            .unwrap()
    };
    assert_eq!(measured("--data-memory 0"), measured(""));
}

/// What is drawn in training beside places and mirror images.
const DRAWN: &str =
    "crop = \"random-resized\", scale = [0.4, 1.0], colour_noise = 0.5, cutout = 4, square = true, orient = \"exif\"";

#[test]
fn whatever_is_drawn_the_bits_do_not_depend_on_where_it_happens() {
    let own = Own::new();
    let model = MODEL.replace("crop = \"random\", pad = 2", DRAWN);
    assert_ne!(model, MODEL);
    fs::write(own.path("own.toml"), model).unwrap();
    let in_memory = own.train("--epochs 2", "in-memory");
    let cache = TempDir::new().unwrap();
    let flags = format!("--epochs 2 --data-memory 0 --cache {} --data-threads 2 --workers 4", cache.path().display());
    let cached = own.train(&flags, "cached");
    assert_eq!(hash(&cached), hash(&in_memory));
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "the file has no name");
    assert_eq!(hash(&own.train("--epochs 2 --data-memory 0 --workers 1", "decoded-again")), hash(&in_memory));
    own.train("--epochs 2 --checkpoint-every 15 --keep 9", "whole");
    let (half, out) = (own.path("whole/checkpoints/step-000015"), own.path("continued"));
    succeed("train --trace off", &[("--resume", &half), ("--out", &out)]);
    assert_eq!(support::hash(&out), hash(&in_memory));
    let manifest: Value = serde_json::from_str(&fs::read_to_string(half.join("manifest.json")).unwrap()).unwrap();
    let variances: Vec<f64> = serde_json::from_value(manifest["colours"]["variances"].clone()).unwrap();
    assert!(variances.is_sorted_by(|a, b| a >= b) && variances[0] > 0.0, "{variances:?}");
    // The negative control: without noise.
    let plain = fs::read_to_string(own.path("own.toml")).unwrap().replace("colour_noise = 0.5, ", "");
    fs::write(own.path("own.toml"), plain).unwrap();
    assert_ne!(hash(&own.train("--epochs 2", "plain")), hash(&in_memory));
}

/// The paper's net has a thousand classes, and its augmentation.
#[test]
fn alexnet_trains_on_a_folder_of_a_thousand_classes() {
    let folder = TempDir::new().unwrap();
    for class in 0..1000u32 {
        for (part, count) in [("train", 2), ("val", 1)] {
            let inside = folder.path().join(part).join(format!("class-{class:04}"));
            fs::create_dir_all(&inside).unwrap();
            for number in 0..count {
                let pixel = |row: u32, column: u32| [class as u8, (row * column) as u8, (number * 40 + column) as u8];
                fs::write(inside.join(format!("{number}.png")), png(9, 7, pixel)).unwrap();
            }
        }
    }
    let out = folder.path().join("run");
    let text = succeed(
        "train --model alexnet --steps 2 --batch 4 --workers 1 --trace off",
        &[("--data", folder.path()), ("--out", &out)],
    );
    assert!(text.contains("1000 classes of image files"), "{text}");
    let checkpoint = support::newest_checkpoint(&out).unwrap();
    let manifest: Value = serde_json::from_str(&fs::read_to_string(checkpoint.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["classes"].as_array().unwrap().len(), 1000);
    assert!(manifest["colours"]["variances"][0].as_f64().unwrap() > 0.0);
}

#[test]
fn ten_views_are_classified_as_ten_images_are_and_their_probabilities_are_averaged() {
    let own = Own::new();
    own.train("--epochs 1", "run");
    // Its shorter side has the length to which images are scaled.
    let pixel = |row: u32, column: u32| [(row * 15) as u8, (column * 9) as u8, ((row + column) * 5) as u8];
    fs::write(own.path("whole.png"), png(20, 14, pixel)).unwrap();
    let crops = own.path("crops");
    fs::create_dir(&crops).unwrap();
    for (number, (top, left)) in [(0, 0), (0, 8), (2, 0), (2, 8), (1, 4)].into_iter().enumerate() {
        let plain = png(12, 12, |row, column| pixel(row + top, column + left));
        let mirrored = png(12, 12, |row, column| pixel(row + top, 11 - column + left));
        fs::write(crops.join(format!("{number}.png")), plain).unwrap();
        fs::write(crops.join(format!("{number}-mirrored.png")), mirrored).unwrap();
    }
    let probabilities = |flags: &str, paths: &[(&str, &Path)]| -> Vec<Vec<f64>> {
        let found: Value = serde_json::from_str(&succeed(&format!("predict --json --top 3 {flags}"), paths)).unwrap();
        let of_image = |image: &Value| {
            let mut classes = image["classes"].as_array().unwrap().clone();
            classes.sort_by_key(|class| class["label"].as_u64());
            classes.iter().map(|class| class["probability"].as_f64().unwrap()).collect()
        };
        found.as_array().unwrap().iter().map(of_image).collect()
    };
    let (run_folder, whole) = (own.path("run"), own.path("whole.png"));
    let ten = probabilities(&format!("--ten-crop {} {}", run_folder.display(), whole.display()), &[]);
    // The same weights with a model that takes each part as it is.
    fs::write(own.path("plain.toml"), MODEL.replace(", resize = 14, crop = \"random\", pad = 2, mirror = true", ""))
        .unwrap();
    let weights = support::newest_checkpoint(&run_folder).unwrap().join("weights.safetensors");
    fs::copy(weights, own.path("plain.safetensors")).unwrap();
    let flags = format!("{} {}", own.path("plain.safetensors").display(), crops.display());
    let each = probabilities(&flags, &[("--model", &own.path("plain.toml"))]);
    assert_eq!((ten.len(), each.len()), (1, 10));
    for class in 0..3 {
        let mean = each.iter().map(|image| image[class]).sum::<f64>() / 10.0;
        assert!((ten[0][class] - mean).abs() < 1e-6, "class {class}: {} and {mean}", ten[0][class]);
    }
    let centre = probabilities(&format!("{} {}", run_folder.display(), whole.display()), &[]);
    assert!(centre != ten, "the centre alone has other probabilities");
    let measured = |flags: &str| -> Value {
        serde_json::from_str(&succeed(&format!("eval --json {flags} {}", run_folder.display()), &[])).unwrap()
    };
    let ten = measured("--ten-crop");
    assert_eq!((&ten["views"], &ten["images"]), (&Value::from("ten"), &measured("")["images"]));
    assert_eq!(measured("--ten-crop --workers 4 --data-memory 0"), ten);
    // Without margins there are no corners.
    let refused = run(&format!("predict --ten-crop {flags}"), &[("--model", &own.path("plain.toml"))]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("--ten-crop takes the corners of images that are larger"), "{}", said(&refused));
}

impl Own {
    /// Starts a job whose images are left on disk, and waits until it has written a checkpoint.
    fn begin(&self, steps: u64, memory: &str, out: &str) -> support::Process {
        let mut command = support::convoy();
        let flags =
            format!("train --steps {steps} --batch 8 --trace off --data-memory {memory} --json --checkpoint-every 20");
        command.args(flags.split_whitespace()).arg("--model").arg(self.path("own.toml")).arg("--data");
        command.arg(self.path("set")).arg("--out").arg(self.path(out)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut job = command.start();
        support::line_with(job.stdout.as_mut().unwrap(), "\"event\":\"checkpoint\"");
        job
    }
}

#[test]
fn a_job_whose_images_are_left_on_disk_survives_the_loss_of_a_worker_and_continues_after_a_kill() {
    let own = Own::new();
    let alone = own.train("--steps 400", "alone");
    // With this much memory, images of several steps are prepared ahead.
    for memory in ["0", "44K"] {
        let (killed, faulty) = (format!("killed-{memory}"), format!("faulty-{memory}"));
        let job = own.begin(400, memory, &killed);
        support::signal(job.id(), "KILL");
        assert!(!support::finish(job).status.success());
        succeed(&format!("train --trace off --data-memory {memory}"), &[("--resume", &own.path(&killed))]);
        assert_eq!(support::hash(&own.path(&killed)), hash(&alone));
        let job = own.begin(400, memory, &faulty);
        support::signal(support::worker_processes(&own.path(&faulty))[1], "KILL");
        let output = support::finish(job);
        assert!(output.status.success(), "{}", said(&output));
        let record = support::record(&own.path(&faulty));
        assert_eq!(record["incidents"].as_array().unwrap().len(), 1, "the worker was lost");
        assert_eq!(hash(&record), hash(&alone));
    }
}

#[test]
fn a_file_that_changes_during_a_job_is_named_and_the_job_continues_once_it_is_back() {
    let own = Own::new();
    let steps = 100_000;
    let job = own.begin(steps, "0", "changed");
    let (set, before) = (own.path("set"), own.path("before"));
    fs::rename(&set, &before).unwrap();
    let refused = support::finish(job);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    for part in
        [".png can't be used any more; the files of a set must stay", "is saved; continue with: convoy train --resume"]
    {
        assert!(said(&refused).contains(part), "no \"{part}\" in {}", said(&refused));
    }
    fs::rename(&before, &set).unwrap();
    // It ends soon after the step that was saved.
    let saved = support::newest_checkpoint(&own.path("changed")).unwrap();
    let saved: u64 = saved.file_name().unwrap().to_str().unwrap().trim_start_matches("step-").parse().unwrap();
    let end = format!("train --trace off --steps {}", saved + 5);
    succeed(&end, &[("--resume", &own.path("changed"))]);
}

#[test]
fn a_checkpoint_has_the_names_of_classes_and_is_measured_on_the_same_test_images() {
    let own = Own::new();
    let trained = own.train("--epochs 2 --test-share 0.3", "run");
    let step = fs::read_dir(own.path("run/checkpoints")).unwrap().next().unwrap().unwrap().path();
    let manifest: Value = serde_json::from_str(&fs::read_to_string(step.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["classes"], serde_json::json!(["blue", "green", "red"]));
    let measured: Value =
        serde_json::from_str(&succeed(&format!("eval --json {}", own.path("run").display()), &[])).unwrap();
    assert_eq!(measured["accuracy"], trained["final"]["test_accuracy"]);
    let wrong = own.path("wrong.tsv");
    let by_class: Value = serde_json::from_str(&succeed(
        &format!("eval --json --by-class {}", own.path("run").display()),
        &[("--wrong", &wrong), ("--data", &own.path("set"))],
    ))
    .unwrap();
    let classes = by_class["by_class"].as_array().unwrap();
    assert_eq!(classes.iter().map(|of| &of["class"]).collect::<Vec<_>>(), ["blue", "green", "red"]);
    let sum = |what: &str| -> u64 { classes.iter().map(|of| of[what].as_u64().unwrap()).sum() };
    assert_eq!(
        [sum("images"), sum("correct")].map(Value::from),
        [&by_class["images"], &by_class["correct"]].map(Clone::clone)
    );
    let listed = fs::read_to_string(&wrong).unwrap();
    assert!(listed.starts_with("image\tlabel\tpredicted\tfile\n"), "{listed}");
    assert_eq!(listed.lines().count() as u64, 1 + sum("images") - sum("correct"));
    let table = succeed(&format!("eval --by-class {}", own.path("run").display()), &[]);
    assert!(table.contains("class  images  correct  accuracy") && table.contains("\ngreen "), "{table}");
    let report = succeed(&format!("report --json {}", own.path("run").display()), &[]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["trained"]["classes"]["names"], serde_json::json!(["blue", "green", "red"]));
    // Other images may have other names of classes, and all of them may be for tests.
    fs::create_dir(own.path("other")).unwrap();
    for name in ["blue", "green", "red"] {
        std::os::unix::fs::symlink(own.path("set").join(name), own.path("other").join(name)).unwrap();
    }
    let all = "eval --json --test-share 1";
    let whole = succeed(&format!("{all} {}", own.path("run").display()), &[("--data", &own.path("other"))]);
    assert_eq!(serde_json::from_str::<Value>(&whole).unwrap()["images"], 90);
    fs::rename(own.path("other/red"), own.path("other/amber")).unwrap();
    let renamed = run(&format!("{all} {}", own.path("run").display()), &[("--data", &own.path("other"))]);
    assert_eq!(renamed.status.code(), Some(2), "{}", said(&renamed));
    assert!(said(&renamed).contains("class 0 is \"blue\" in"), "{}", said(&renamed));
    assert!(said(&renamed).contains("and \"amber\" in the images"), "{}", said(&renamed));
    // What a checkpoint remembers of how a folder is read stays, whatever else is asked for.
    let longer = "train --epochs 3 --trace off --bad-images skip --classes auto";
    succeed(longer, &[("--resume", &own.path("run")), ("--out", &own.path("longer"))]);
    // A folder with another image is another set.
    fs::write(own.path("set/red/new.png"), png(12, 12, |_, _| [9, 9, 9])).unwrap();
    let refused = run("train --epochs 3 --trace off", &[("--resume", &own.path("run"))]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("the data are not those of the checkpoint's job"), "{}", said(&refused));
}

#[test]
fn files_that_are_no_images_stop_a_job_before_it_begins_or_are_left_out() {
    let own = Own::new();
    let clean = own.train("--epochs 1", "clean");
    fs::write(own.path("set/red/empty.png"), b"").unwrap();
    fs::write(own.path("set/blue/text.jpg"), b"not an image").unwrap();
    let paths: &[(&str, &Path)] =
        &[("--model", &own.path("own.toml")), ("--data", &own.path("set")), ("--out", &own.path("bad"))];
    let refused = run("train --epochs 1 --batch 8", paths);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    for part in
        ["2 of 92 images", "empty.png: it is empty", "text.jpg: it is neither JPEG nor PNG", "--bad-images skip leave"]
    {
        assert!(said(&refused).contains(part), "no \"{part}\" in {}", said(&refused));
    }
    assert!(!own.path("bad").exists(), "nothing is left of the job");
    let skipped = own.train("--epochs 1 --bad-images skip", "skipped");
    assert_eq!(hash(&skipped), hash(&clean), "the same images give the same weights");
}

#[test]
fn a_folder_with_two_formats_is_read_as_the_one_that_is_named() {
    let own = Own::new();
    let plain = own.train("--epochs 1", "plain");
    fs::write(own.path("set/train-labels-idx1-ubyte"), b"").unwrap();
    let out = own.path("found");
    let paths: &[(&str, &Path)] = &[("--model", &own.path("own.toml")), ("--data", &own.path("set")), ("--out", &out)];
    let found = run("train --epochs 1 --batch 8", paths);
    assert!(!found.status.success() && said(&found).contains("t10k-images-idx3-ubyte"), "{}", said(&found));
    let named = own.train("--epochs 1 --data-format images", "named");
    assert_eq!(hash(&named), hash(&plain));
    succeed(&format!("eval {}", own.path("named").display()), &[]);
    let other = run("train --epochs 1 --batch 8 --data-format parquet", paths);
    assert_eq!(other.status.code(), Some(1), "{}", said(&other));
    assert!(said(&other).contains("set has no Parquet files (--data-format parquet)"), "{}", said(&other));
    let bundled = run("train --data bundled --data-format idx", &[]);
    assert!(said(&bundled).contains("is for a folder or a file, and --data is bundled"), "{}", said(&bundled));
    assert!(!out.exists(), "nothing is left of the jobs");
}

#[test]
fn classes_auto_gives_a_preset_the_classes_of_a_folder() {
    let own = Own::new();
    let paths: &[(&str, &Path)] = &[("--data", &own.path("set")), ("--out", &own.path("preset"))];
    let refused = run("train --model alexnet-cifar --steps 2 --trace off", paths);
    assert!(
        said(&refused).contains("has 3 classes, and the model has 10; a new job with --classes auto"),
        "{}",
        said(&refused)
    );
    succeed("train --model alexnet-cifar --classes auto --steps 2 --trace off", paths);
}

/// What a job with other classes takes from this one: all layers but the last, of which the first one stays as it is.
#[test]
fn a_trained_net_is_tuned_to_other_classes() {
    let own = Own::new();
    own.train("--epochs 2", "trained");
    let before = support::checkpoint(&own.path("trained")).join("weights.safetensors");
    fs::rename(own.path("set/red"), own.path("red")).unwrap();
    // Another name for the first layer, and another number of classes.
    let model =
        MODEL.replace("name = \"conv1\"", "name = \"stem.0\"\ntrainable = false").replace("units = 3", "units = 2");
    fs::write(own.path("tuned.toml"), &model).unwrap();
    fs::write(own.path("names.toml"), "\"stem.0\" = \"conv1\"\n").unwrap();
    let tune = |model: &str, flags: &str, out: &str| {
        let (model, set, names, out) = (own.path(model), own.path("set"), own.path("names.toml"), own.path(out));
        let paths: &[(&str, &Path)] =
            &[("--model", &model), ("--data", &set), ("--init", &before), ("--init-names", &names), ("--out", &out)];
        run(&format!("train --batch 8 --epochs 2 --trace off {flags}"), paths)
    };
    let refused = tune("tuned.toml", "", "refused");
    assert!(said(&refused).contains("the tensor \"fc.weight\" is F32 of shape [3,"), "{}", said(&refused));
    let refused = tune("tuned.toml", "--init-except fd", "refused");
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("--init-except: \"fd\" is no layer with weights"), "{}", said(&refused));
    for workers in [1, 2] {
        let tuned = tune("tuned.toml", &format!("--init-except fc --workers {workers}"), &format!("tuned-{workers}"));
        assert!(tuned.status.success(), "{}", said(&tuned));
    }
    let after = |out: &str| support::checkpoint(&own.path(out)).join("weights.safetensors");
    assert_eq!(support::hash(&own.path("tuned-1")), support::hash(&own.path("tuned-2")));
    for part in ["weight", "bias"] {
        let (had, has) = (format!("conv1.{part}"), format!("stem.0.{part}"));
        assert_eq!(support::read_tensor(&before, &had), support::read_tensor(&after("tuned-1"), &has), "{part}");
    }
    // The negative control: a layer that learns changes.
    fs::write(own.path("learning.toml"), model.replace("trainable = false", "lr_scale = 0.5")).unwrap();
    let learning = tune("learning.toml", "--init-except fc", "learning");
    assert!(learning.status.success(), "{}", said(&learning));
    let weight = |path: &Path, layer: &str| support::read_tensor(path, &format!("{layer}.weight"));
    assert_ne!(weight(&before, "conv1"), weight(&after("learning"), "stem.0"));
}

#[test]
fn predict_names_the_class_of_files_and_of_standard_input() {
    let own = Own::new();
    own.train("--epochs 3", "run");
    let out = own.path("run");
    let image = own.path("set/green/3.png");
    let predicted = |images: &[(&str, &Path)], flags: &str| -> Value {
        serde_json::from_str(&succeed(&format!("predict {} --json {flags}", out.display()), images)).unwrap()
    };
    let one = predicted(&[("--top=2", &image)], "");
    let classes = one[0]["classes"].as_array().unwrap();
    assert_eq!(
        (classes.len(), &classes[0]["class"], &classes[0]["label"]),
        (2, &Value::from("green"), &Value::from(1))
    );
    let all = predicted(&[("--top=3", &own.path("set/red"))], "");
    assert_eq!(all.as_array().unwrap().len(), 30);
    for prediction in all.as_array().unwrap() {
        let sum: f64 =
            prediction["classes"].as_array().unwrap().iter().map(|class| class["probability"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{prediction}");
    }
    let mut command = support::convoy();
    command.args(["predict", out.to_str().unwrap(), "-"]).stdin(fs::File::open(&image).unwrap());
    let output = support::output_of(&mut command);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("-  green "), "{}", said(&output));
    fs::write(own.path("no.png"), b"no").unwrap();
    let refused = run(&format!("predict {}", out.display()), &[("--top=1", &own.path("no.png"))]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("no.png: it is neither JPEG nor PNG"), "{}", said(&refused));
}
