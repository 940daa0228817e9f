//! Bad input for the built program: flags, model files, data, checkpoints, folders and addresses. Each case must end with
//! the right exit code and an error that names what is wrong and what would be right, and must leave no half-written file.
//! Bad input from the network is tested in `tests/strangers.rs`.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::{
    Images, Start as _, checkpoint, finish, hash, losses, record, run, said, signal, succeed, wait_for, write_data,
};
use tempfile::TempDir;

const FAILED: i32 = 1;
const MISUSED: i32 = 2;

/// Runs the program, which has to refuse, in words that hold every one of `parts`.
fn refused(arguments: &str, paths: &[(&str, &Path)], code: i32, parts: &[&str]) {
    let output = run(arguments, paths);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(code), "convoy {arguments} {paths:?}:\n{text}");
    for part in parts {
        assert!(text.contains(part), "convoy {arguments} {paths:?}: no \"{part}\" in\n{text}");
    }
    for bad in ["panicked", "RUST_BACKTRACE", "src/"] {
        assert!(!text.contains(bad), "convoy {arguments}: \"{bad}\" in\n{text}");
    }
}

#[test]
fn slips_of_the_command_line_are_answered_with_what_would_be_right() {
    let cases: &[(&str, &[&str])] = &[
        ("trian", &["trian", "train"]),
        ("train --epoch 3", &["--epoch", "--epochs"]),
        ("train --model alexnet-fashon", &["alexnet-fashon", "alexnet-fashion"]),
        ("train --model nowhere/net.toml", &["nowhere/net.toml", "No such file"]),
        ("train --schedule cosin", &["cosin", "cosine"]),
        ("train --order shufled", &["shufled", "shuffled"]),
        ("train --data bundled --workers 5", &["--workers 5", "at most 4", "\"alexnet-fashion\" has 2 towers"]),
        ("train --data bundled --workers 0", &["'0' for '--workers", "at least 1"]),
        ("train --data bundled --threads 0", &["'0' for '--threads", "from 1 to 1024"]),
        ("train --data bundled --steps 0", &["0", "at least 1"]),
        ("train --data bundled --epochs 0", &["0", "at least 1"]),
        ("train --data bundled --steps 3 --epochs 2", &["--steps", "--epochs", "cannot be used with"]),
        ("train --data bundled --batch 0", &["'0' for '--batch", "whole number from 1 to 1048576"]),
        ("train --data bundled --batch x", &["'x' for '--batch", "whole number from 1 to 1048576"]),
        ("train --data bundled --seed -1", &["'-1' for '--seed", "whole number of at least 0"]),
        ("train --data bundled --lr fast", &["'fast' for '--lr", "must be a number, such as 0.01"]),
        ("train --data bundled --slots 65", &["--slots 65", "1 to 64"]),
        ("train --data bundled --slots 4 --micro-batches 17", &["--micro-batches 17", "1 to 16, the size of a slot"]),
        ("plan --slots 4 --micro-batches 17", &["--micro-batches 17", "1 to 16, the size of a slot"]),
        ("plan --batch 20000 --slots 20000", &["--slots 20000", "at most 16384"]),
        ("train --data bundled --batch 1 --workers 3", &["--workers 3", "up to one slot for each image of a batch"]),
        ("train --data bundled --micro-batches 0", &["--micro-batches", "0", "at least 1"]),
        ("train --data bundled --micro-batches 65", &["--micro-batches 65", "1 to 32, the size of a slot"]),
        ("train --data bundled --lr=-1", &["--lr -1", "above 0"]),
        ("train --data bundled --lr nan", &["--lr NaN", "above 0"]),
        ("train --data bundled --lr 1e39", &["--lr", "fits into f32"]),
        ("train --data bundled --lr -1", &["--lr -1", "above 0"]),
        ("train --data bundled --threads 100000", &["'100000' for '--threads", "from 1 to 1024"]),
        ("worker --join 127.0.0.1:1 --threads 100000", &["'100000' for '--threads", "from 1 to 1024"]),
        ("train --data bundled --momentum 1", &["--momentum 1", "below 1"]),
        ("train --data bundled --weight-decay=-1", &["--weight-decay -1", "at least 0"]),
        ("train --data bundled --checkpoint-every 0", &["--checkpoint-every", "0"]),
        ("train --resume auto", &["--resume auto", "--out"]),
        ("train --listen nowhere", &["nowhere", "HOST:PORT"]),
        ("bench --model alexnet-fashon", &["alexnet-fashon", "alexnet-fashion"]),
        ("bench --batch 0", &["--batch", "0", "from 1 to 1048576"]),
        ("bench --model alexnet-fashion --workers 5", &["--workers 5", "at most 4"]),
        ("bench --isa sse", &["sse", "scalar"]),
        ("bench kernels --repeats 0", &["--repeats", "0", "from 1 to 10000"]),
        ("bench --steps 3 kernels", &["--steps", "cannot be used"]),
        ("worker --join 7878", &["7878", "HOST:PORT"]),
        ("worker --join 127.0.0.1:1 --threads 0", &["--threads", "0"]),
        ("worker --join 127.0.0.1:1 --token-file nowhere", &["the token in nowhere", "No such file"]),
        ("worker --join 127.0.0.1:1 --token-file /dev/zero", &["the token in /dev/zero", "1 to 1024 ASCII letters"]),
        ("train --data bundled --token-file nowhere", &["--listen"]),
        (
            "worker --join 10.0.0.7:1 --token-file nowhere",
            &["--join 10.0.0.7:1", "unencrypted", "--tls-cert", "--insecure-token"],
        ),
        ("worker --join a:1,127.0.0.1:2 --token-file nowhere", &["--join a:1", "unencrypted"]),
        ("train --listen 0.0.0.0:7 --token-file nowhere", &["--listen 0.0.0.0:7", "unencrypted", "--tls-cert"]),
        ("eval nowhere --listen 0.0.0.0:7 --token-file nowhere", &["--listen 0.0.0.0:7", "unencrypted"]),
        ("study quick --listen 0.0.0.0:7 --token-file nowhere", &["--listen 0.0.0.0:7", "unencrypted"]),
        ("worker --join 127.0.0.1:1 --tls-cert nowhere", &["--tls-cert without --tls-key and --tls-ca"]),
        (
            "worker --join 127.0.0.1:1 --tls-cert nowhere --tls-key no --tls-ca no",
            &["--tls-cert nowhere", "No such file"],
        ),
        ("health 127.0.0.1:1 --tls-ca nowhere", &["--tls-ca without --tls-cert and --tls-key"]),
        ("certs", &["<DIR>"]),
        ("certs /proc/nowhere", &["/proc/nowhere"]),
        ("certs /dev/null", &["/dev/null"]),
        ("certs /tmp --workers 0", &["--workers", "from 1 to 10000"]),
        ("certs /tmp --days 0", &["--days", "from 1 to 3650"]),
        ("train --data bundled --token-file nowhere --threads 1", &["--token-file nowhere: needs --listen"]),
        ("plan --workers 5", &["--workers 5", "at most 4"]),
        ("plan --model alexnot", &["alexnot", "alexnet"]),
        ("plan --batch 0", &["--batch", "0"]),
        ("plan --gflops 0", &["--gflops", "from 0.1"]),
        ("plan --gflops inf", &["--gflops", "from 0.1"]),
        ("plan --gflops 50 --link-mbit -1", &["--link-mbit", "from 0.1"]),
        ("plan --link-mbit 100", &["--gflops"]),
    ];
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    for (arguments, parts) in cases {
        let paths: &[(&str, &Path)] = if arguments.starts_with("train") { &[("--out", &out)] } else { &[] };
        let paths = if arguments.contains("--resume auto") { &[] } else { paths };
        refused(arguments, paths, MISUSED, parts);
        assert!(!out.exists(), "convoy {arguments} left something behind");
    }
}

/// A sound model of two towers; each case spoils one thing.
const MODEL: &str = r#"name = "small"
towers = 2
input = { channels = 1, height = 8, width = 8 }
[[layer]]
kind = "conv"
name = "conv1"
filters = 8
kernel = 3
[[layer]]
kind = "relu"
[[layer]]
kind = "conv"
name = "conv2"
filters = 8
kernel = 3
groups = 2
[[layer]]
kind = "max_pool"
kernel = 2
stride = 2
[[layer]]
kind = "linear"
name = "fc"
units = 3
"#;

#[test]
fn a_wrong_model_file_is_refused_by_layer_and_key() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("towers = 2", "towrs = 2", &["towrs", "towers"]),
        ("towers = 2", "towers = 0", &["towers", "0", "1 to 1024"]),
        ("towers = 2", "towers = \"two\"", &["towers", "two"]),
        ("towers = 2", "", &["towers", "missing"]),
        ("towers = 2", "towers = = 2", &["is not valid TOML", "line 2"]),
        ("kernel = 3\ngroups", "kernal = 3\ngroups", &["layer 3", "conv2", "kernal", "kernel"]),
        ("kind = \"max_pool\"", "kind = \"maxpool\"", &["layer 4", "maxpool", "max_pool"]),
        ("groups = 2", "groups = 3", &["layer 3", "conv2", "groups = 3", "8 input channels"]),
        ("towers = 2", "towers = 4", &["layer 3", "conv2", "groups = 2", "multiple of the 4 towers"]),
        ("filters = 8\nkernel = 3\n[", "filters = 7\nkernel = 3\n[", &["layer 1", "conv1", "filters = 7", "2 towers"]),
        ("height = 8", "height = 3", &["layer 3", "conv2", "kernel = 3", "must fit", "1x6"]),
        ("kernel = 2\nstride = 2", "kernel = 9\nstride = 2", &["layer 4", "kernel = 9", "must fit", "4x4"]),
        ("kernel = 2\nstride = 2", "kernel = 2\nstride = 0", &["layer 4", "stride = 0", "must be 1 to"]),
        ("units = 3", "units = 1", &["layer 5", "fc", "units = 1", "at least 2, one for each tower"]),
        ("units = 3", "units = 3\n[[layer]]\nkind = \"relu\"", &["layer 6", "last layer must be a linear", "relu"]),
        ("name = \"conv2\"", "name = \"conv1\"", &["layer 3", "conv1", "another layer has this name"]),
        ("filters = 8\nkernel = 3\ngroups", "filters = 9999999999999\nkernel = 3\ngroups", &["conv2", "9999999999999"]),
        ("units = 3", "units = 3\ninit = { sdt = 0.1 }", &["layer 5", "sdt", "std"]),
        (
            "filters = 8\nkernel = 3\n[",
            "filters = 8\nkernel = [3, 2]\n[",
            &["layer 1", "kernel = [3, 2]", "whole number"],
        ),
        ("groups = 2", "dilation = 2", &["layer 3", "dilation", "expected one of", "groups"]),
        ("kind = \"max_pool\"", "kind = \"concat\"", &["layer 4", "concat", "expected one of conv, linear"]),
        ("stride = 2", "pad = 2", &["layer 4", "pad = 2", "at most half of kernel = 2", "PyTorch"]),
    ];
    let folder = TempDir::new().unwrap();
    let (model, out) = (folder.path().join("model.toml"), folder.path().join("run"));
    fs::write(&model, MODEL).unwrap();
    succeed("plan", &[("--model", &model)]);
    for (from, to, parts) in cases {
        assert_eq!(MODEL.matches(from).count(), 1, "\"{from}\" is there once");
        fs::write(&model, MODEL.replace(from, to)).unwrap();
        refused("plan", &[("--model", &model)], FAILED, parts);
        refused("train --data synthetic --steps 1", &[("--model", &model), ("--out", &out)], FAILED, parts);
        assert!(!out.exists(), "{to}");
    }
    fs::write(&model, [0xff, 0xfe, 0]).unwrap();
    refused("plan", &[("--model", &model)], MISUSED, &["model.toml", "UTF-8"]);
    refused("plan", &[("--model", folder.path())], MISUSED, &["directory"]);
}

fn images(count: usize, side: usize, classes: u8) -> Images {
    let labels = (0..count).map(|index| index as u8 % classes).collect();
    Images { pixels: (0..count * side * side).map(|i| (i * 37 % 251) as u8).collect(), shape: [1, side, side], labels }
}

/// A folder with a model and data that fit each other.
fn sound() -> (TempDir, PathBuf, PathBuf) {
    let folder = TempDir::new().unwrap();
    let (model, data) = (folder.path().join("model.toml"), folder.path().join("data"));
    fs::write(&model, MODEL).unwrap();
    fs::create_dir(&data).unwrap();
    write_data(&data, &images(30, 8, 3), &images(9, 8, 3));
    (folder, model, data)
}

#[test]
fn damaged_missing_and_unfitting_data_are_refused_by_file() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let train = |code, parts: &[&str]| {
        let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
        refused("train --steps 1 --batch 5", paths, code, parts);
        assert!(!out.exists(), "{parts:?}");
    };
    let pixels = data.join("train-images-idx3-ubyte");
    let labels = data.join("train-labels-idx1-ubyte");
    let whole = fs::read(&pixels).unwrap();
    let spoil = |path: &Path, bytes: &[u8], parts: &[&str]| {
        let before = fs::read(path).unwrap();
        fs::write(path, bytes).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        train(FAILED, &[parts, &[name]].concat());
        fs::write(path, before).unwrap();
    };
    spoil(&pixels, &whole[..whole.len() - 1], &["ends after", "1935", "1936"]);
    spoil(&pixels, &whole[..7], &["ends after 7 bytes"]);
    spoil(&pixels, &[], &["ends after 0 bytes"]);
    spoil(&pixels, &[&whole[..], &[0]].concat(), &["has more than the 1936 bytes"]);
    spoil(&pixels, &[b"GIF8", &whole[4..]].concat(), &["not an IDX file", "starts with \"GIF8\""]);
    spoil(
        &pixels,
        &[&[0, 0, 12, 3], &whole[4..]].concat(),
        &["holds 32-bit integers in 3 dimensions", "unsigned bytes"],
    );
    let huge = [&[0, 0, 8, 3][..], &[0xff; 12]].concat();
    spoil(&pixels, &huge, &["claims to hold"]);
    spoil(&pixels, &[&[0, 0, 8, 3][..], &[0; 12]].concat(), &["each must be at least 1"]);
    let of_labels = |labels: &[u8]| [&[0, 0, 8, 1, 0, 0, 0, labels.len() as u8][..], labels].concat();
    let mut out_of_range = images(30, 8, 3).labels;
    out_of_range[17] = 3;
    spoil(&labels, &of_labels(&out_of_range), &["label 3 at index 17", "3 classes", "0 to 2"]);
    spoil(&labels, &of_labels(&[0; 29]), &["30 images", "29 labels"]);

    let zipped = data.join("train-images-idx3-ubyte.gz");
    fs::rename(&pixels, folder.path().join("aside")).unwrap();
    train(FAILED, &["lacks", "train-images-idx3-ubyte"]);
    fs::write(&zipped, b"\x1f\x8b\x08 this was cut short").unwrap();
    train(FAILED, &["train-images-idx3-ubyte.gz"]);
    fs::remove_file(&zipped).unwrap();
    fs::rename(folder.path().join("aside"), &pixels).unwrap();

    write_data(&data, &images(30, 9, 3), &images(9, 9, 3));
    train(FAILED, &["1x9x9", "1x8x8"]);
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--out", &out)];
    refused("train --data bundled", paths, FAILED, &["Fashion-MNIST", "1x28x28", "1x8x8", "--data DIR"]);
    refused("train --data ./no-such-folder", paths, FAILED, &["no-such-folder", "does not exist"]);
    assert!(!out.exists());
}

#[test]
fn a_checkpoint_that_does_not_fit_or_is_damaged_is_refused_and_left_as_it_is() {
    let (folder, model, data) = sound();
    let run = folder.path().join("run");
    let fitting: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &run)];
    succeed("train --steps 4 --batch 5 --checkpoint-every 2", fitting);
    let before = hash(&run);
    let resume: &[(&str, &Path)] = &[("--resume", &run), ("--data", &data)];
    refused("train --steps 8 --lr 0.5", resume, MISUSED, &["--lr is 0.5", "0.02", "must keep it"]);
    refused("train --steps 8 --batch 6", resume, MISUSED, &["batch is 6", "has 5"]);
    refused("train --steps 8 --seed 2", resume, MISUSED, &["seed is 2", "has 1"]);
    refused("train --steps 8 --slots 1", resume, MISUSED, &["--slots is 1", "has 2", "must keep it"]);
    refused("train --steps 8 --model alexnet-fashion", resume, MISUSED, &["alexnet-fashion", "small"]);
    let changed = folder.path().join("changed.toml");
    let text = fs::read_to_string(&model).unwrap();
    fs::write(&changed, text.replace("height = 8", "mirror = true, height = 8")).unwrap();
    let other: &[(&str, &Path)] = &[("--resume", &run), ("--data", &data), ("--model", &changed)];
    refused("train --steps 8", other, MISUSED, &["--model or --classes", "mirror = true", "and there it is"]);
    refused("train --steps 3", resume, MISUSED, &["after step 3", "checkpoint's step 4", "larger --epochs or --steps"]);
    refused("train --steps 4 --batch 5", fitting, MISUSED, &["already holds a run", "--resume", "--out"]);
    refused("train --resume ./no-such-run", &[], FAILED, &["no-such-run"]);
    let other_data = folder.path().join("other");
    fs::create_dir(&other_data).unwrap();
    write_data(&other_data, &images(29, 8, 3), &images(9, 8, 3));
    refused(
        "train --steps 8",
        &[("--resume", &run), ("--data", &other_data)],
        MISUSED,
        &["the data are not those", "give --data"],
    );
    assert_eq!(hash(&run), before, "a refusal changes nothing");

    let newest = checkpoint(&run);
    let weights = newest.join("weights.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (bytes, parts) in [
        (&flipped[..], ["weights.safetensors", "is damaged", "SHA-256"]),
        (&whole[..whole.len() / 2], ["weights.safetensors", "is damaged", "SHA-256"]),
    ] {
        fs::write(&weights, bytes).unwrap();
        refused("train --steps 8", &[("--resume", &newest), ("--data", &data)], FAILED, &parts);
    }
    fs::write(&weights, &whole).unwrap();
    let manifest = newest.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    refused("train --steps 8", &[("--resume", &newest), ("--data", &data)], FAILED, &["manifest.json", "is damaged"]);
    fs::write(&manifest, &text).unwrap();
    succeed("train --steps 8", resume);

    let init = |bytes: &[u8], parts: &[&str]| {
        let (file, out) = (folder.path().join("init.safetensors"), folder.path().join("from-init"));
        fs::write(&file, bytes).unwrap();
        let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--init", &file), ("--out", &out)];
        refused("train --steps 1 --batch 5", paths, FAILED, parts);
        assert!(!out.exists(), "{parts:?}");
    };
    init(&whole[..40], &["init.safetensors", "safetensors file"]);
    init(&[0xff; 64], &["init.safetensors", "safetensors file"]);
    let stranger = folder.path().join("stranger.safetensors");
    support::write_tensors(&stranger, &[("conv9.weight".to_owned(), vec![2, 2], vec![0.5; 4])]);
    init(&fs::read(stranger).unwrap(), &["init.safetensors", "conv"]);
    refused("eval", &[("--data", &data), ("--model", &model)], MISUSED, &["<PATH>"]);
}

#[test]
fn a_folder_or_an_address_that_cannot_be_had_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("a-file");
    fs::write(&file, "here first").unwrap();
    let below = file.join("run");
    refused(
        "train --data bundled --steps 1",
        &[("--out", &below)],
        FAILED,
        &["write", "a-file/run", "Not a directory"],
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "here first");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let out = folder.path().join("run");
    let arguments = format!("train --data bundled --steps 1 --listen {address}");
    refused(&arguments, &[("--out", &out)], FAILED, &["listen on", &address, "in use"]);
    let elsewhere = "train --data bundled --steps 1 --listen 203.0.113.7:7878";
    refused(elsewhere, &[("--out", &out)], FAILED, &["listen on 203.0.113.7:7878", "assign requested address"]);
    assert_eq!(record(&out)["status"], "failed");
    drop(taken);
    succeed("train --data bundled --steps 1", &[("--out", &out)]);
    assert_eq!(record(&out)["status"], "done", "a run that never began doesn't keep its folder");
}

#[test]
fn a_folder_in_which_a_run_goes_on_is_not_touched() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    command.args("train --data bundled --epochs 50 --checkpoint-every 2".split_whitespace()).arg("--out").arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for("a checkpoint", || support::newest_checkpoint(&out));
    refused("train --data bundled --steps 100000", &[("--resume", &out)], MISUSED, &["is in use by another process"]);
    refused("train --data bundled --steps 100000", &[("--out", &out)], MISUSED, &["already holds a run"]);
    assert_eq!(record(&out)["status"], "running");
    signal(child.id(), "INT");
    assert_eq!(finish(child).status.code(), Some(130));
}

/// A checkpoint that was copied out of its run belongs to no run: going on from it begins a folder of its own, and leaves
/// alone whatever lies around it.
#[test]
fn a_checkpoint_outside_of_a_run_is_gone_on_from_in_a_folder_of_its_own() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    succeed("train --steps 2 --batch 8", &[("--model", &model), ("--data", &data), ("--out", &out)]);
    let (kept, stranger) = (folder.path().join("kept"), folder.path().join("run.json"));
    fs::create_dir(&kept).unwrap();
    fs::write(&stranger, "mine").unwrap();
    let copy = kept.join("step-000002");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(checkpoint(&out)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, copy.join(from.file_name().unwrap())).unwrap();
    }
    let mut command = support::convoy();
    command.args(["train", "--steps", "3", "--data"]).arg(&data).arg("--resume").arg(&copy).current_dir(folder.path());
    let output = support::output_of(&mut command);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read_to_string(&stranger).unwrap(), "mine");
    assert!(!folder.path().join("checkpoints").exists() && !kept.join("run.json").exists());
    assert!(said(&output).contains("runs/"), "{}", said(&output));
    // By a relative name, from within its run, it is that run's.
    let mut command = support::convoy();
    command.args(["train", "--steps", "3", "--resume", "step-000002", "--data"]).arg(&data);
    let output = support::output_of(command.current_dir(out.join("checkpoints")));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(record(&out)["final"]["steps"], 3);
    assert_eq!(losses(&out).len(), 3);
}

/// `convoy train | head -1`: the job goes on to its end.
#[test]
fn a_reader_that_goes_away_ends_no_job() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    command
        .args(["train", "--steps", "4", "--batch", "8", "--data"])
        .arg(&data)
        .arg("--model")
        .arg(&model)
        .arg("--out")
        .arg(&out);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    drop(child.stdout.take());
    let output = finish(child);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!((record(&out)["status"].as_str(), losses(&out).len()), (Some("done"), 4));
}

/// What was asked for is printed or it is an error; a job goes on with or without readers.
#[test]
fn an_input_without_end_and_an_output_that_is_full_are_errors() {
    refused("plan --model /dev/zero", &[], FAILED, &["/dev/zero", "more than 1048576 bytes"]);
    for arguments in ["plan", "plan --json"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = support::convoy();
        let child = command.args(arguments.split_whitespace()).stdout(full).stderr(Stdio::piped()).start();
        let output = finish(child);
        assert_eq!(output.status.code(), Some(FAILED), "{}", said(&output));
        assert!(said(&output).contains("write to standard output: No space"), "{}", said(&output));
    }
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = support::convoy();
    command.args(["train", "--data", "bundled", "--steps", "2", "--out"]).arg(&out);
    let output = finish(command.stdout(full).stderr(Stdio::piped()).start());
    assert_eq!(output.status.code(), Some(FAILED), "{}", said(&output));
    assert!(said(&output).contains("write to standard output: No space"), "{}", said(&output));
    assert_eq!(record(&out)["status"], "done");
}

/// Whichever class has no training image, the job trains and says so.
#[test]
fn missing_classes_are_named_and_stop_no_job() {
    let (folder, model, data) = sound();
    for missing in 0..3u8 {
        let out = folder.path().join(format!("run-{missing}"));
        let mut train = images(30, 8, 3);
        train.labels.iter_mut().filter(|label| **label == missing).for_each(|label| *label = (missing + 1) % 3);
        write_data(&data, &train, &images(9, 8, 3));
        let text = succeed("train --steps 1 --batch 5", &[("--model", &model), ("--data", &data), ("--out", &out)]);
        let notice = format!("1 of the model's 3 classes has no training image: {missing}\n");
        assert!(text.contains(&notice), "no \"{notice}\" in {text}");
    }
}

/// A finished run that is resumed says so and stays as it is; one that is interrupted goes on with the data that it had.
#[test]
fn resuming_needs_no_other_word_and_changes_no_finished_run() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    succeed("train --steps 3 --batch 8", paths);
    let before = (fs::read(out.join("run.json")).unwrap(), fs::read(out.join("metrics.jsonl")).unwrap());
    let text = succeed("train", &[("--resume", &out)]);
    assert!(text.contains("has ended already") && text.contains(&hash(&out)), "{text}");
    assert_eq!(before, (fs::read(out.join("run.json")).unwrap(), fs::read(out.join("metrics.jsonl")).unwrap()));
    // What is asked for beside it is looked at all the same.
    refused("train --workers 5", &[("--resume", &out)], MISUSED, &["--workers 5", "must be at most 4"]);
    refused("train --data synthetic", &[("--resume", &out)], MISUSED, &["the data are not those", "give --data"]);
    let text = succeed("train --steps 5", &[("--resume", &out)]);
    assert!(text.contains("schedule ends at step 3;"), "{text}");
    assert_eq!((record(&out)["final"]["steps"].as_u64(), losses(&out).len()), (Some(5), 5));
}

/// A coordinator that is killed between its last checkpoint and its last record leaves a run that can be brought to an end.
#[test]
fn a_run_whose_end_was_not_recorded_is_ended_by_resuming_it() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    succeed("train --steps 3 --batch 8", &[("--model", &model), ("--data", &data), ("--out", &out)]);
    let (whole, metrics) = (record(&out), fs::read(out.join("metrics.jsonl")).unwrap());
    let mut cut = whole.clone();
    (cut["status"], cut["final"]) = ("running".into(), serde_json::Value::Null);
    fs::write(out.join("run.json"), cut.to_string()).unwrap();
    succeed("train --resume auto", &[("--out", &out)]);
    assert_eq!((&record(&out)["status"], &record(&out)["final"]), (&whole["status"], &whole["final"]));
    let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').count();
    assert_eq!(
        lines(&fs::read(out.join("metrics.jsonl")).unwrap()),
        lines(&metrics),
        "the last measurement is there once"
    );
}

/// `eval --logits` replaces a file of its own, and nothing else.
#[test]
fn logits_replace_neither_devices_nor_weights() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    succeed("train --steps 1 --batch 8", &[("--model", &model), ("--data", &data), ("--out", &out)]);
    let weights = checkpoint(&out).join("weights.safetensors");
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let copy = folder.path().join("copy.safetensors");
    fs::copy(&weights, &copy).unwrap();
    let (records, images) = (out.join("run.json"), data.join("t10k-images-idx3-ubyte"));
    let nowhere = folder.path().join("nowhere").join("logits.safetensors");
    let eval = format!("eval {}", out.display());
    for (target, part) in [
        (&weights, "is a checkpoint"),
        (&fifo, "not a plain file"),
        (&nowhere, "its folder does not exist"),
        (&copy, "is not a file of logits"),
        (&records, "is not a file of logits"),
        (&images, "is not a file of logits"),
        (&model, "is not a file of logits"),
    ] {
        let before = target.is_file().then(|| fs::read(target).unwrap());
        refused(&eval, &[("--data", &data), ("--logits", target)], FAILED, &[part, target.to_str().unwrap()]);
        assert_eq!(before, target.is_file().then(|| fs::read(target).unwrap()), "{target:?}");
    }
    for _ in 0..2 {
        succeed(&eval, &[("--data", &data), ("--logits", &folder.path().join("logits.safetensors"))]);
    }
}

/// Workers beyond those would have no images.
#[test]
fn a_measurement_has_at_most_as_many_replicas_as_images() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    succeed("train --steps 1 --batch 8", &[("--model", &model), ("--data", &data), ("--out", &out)]);
    let eval = |workers: usize| format!("eval {} --workers {workers}", out.display());
    let most = "at most 18: 2 towers times 9 test images";
    refused(&eval(19), &[("--data", &data)], MISUSED, &["--workers 19", most]);
    let [one, many] = [1, 18].map(|workers| succeed(&eval(workers), &[("--data", &data)]));
    assert_eq!(one, many);
}

/// Weights that overflow are not the fault of a job's settings.
#[test]
fn weights_that_are_too_large_are_named() {
    let (folder, model, data) = sound();
    let (out, huge) = (folder.path().join("run"), folder.path().join("huge.safetensors"));
    succeed("train --steps 1 --batch 8", &[("--model", &model), ("--data", &data), ("--out", &out)]);
    let whole = fs::read(checkpoint(&out).join("weights.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let floats = whole[header..].chunks_exact(4).flat_map(|_| 3e38f32.to_le_bytes());
    fs::write(&huge, whole[..header].iter().copied().chain(floats).collect::<Vec<u8>>()).unwrap();
    let eval = format!("eval {}", huge.display());
    refused(&eval, &[("--data", &data), ("--model", &model)], FAILED, &["huge.safetensors are too large"]);
}

/// An error about a value from the environment names the variable; one about a flag does not.
#[test]
fn a_wrong_value_from_the_environment_is_named_as_such() {
    for (arguments, note) in [("train", true), ("train --workers 9", false)] {
        let mut command = support::convoy();
        let output = support::output_of(command.args(arguments.split_whitespace()).env("CONVOY_WORKERS", "9"));
        assert_eq!(output.status.code(), Some(MISUSED), "{}", said(&output));
        let text = said(&output);
        assert!(text.contains("--workers 9: must be at most 4"), "{text}");
        assert_eq!(text.contains("the environment variable CONVOY_WORKERS=9"), note, "{text}");
    }
    let mut command = support::convoy();
    let output = support::output_of(command.arg("train").env("CONVOY_BATCH", OsStr::from_bytes(&[0xff])));
    assert_eq!(output.status.code(), Some(MISUSED), "{}", said(&output));
    assert!(said(&output).contains("environment variables are not UTF-8 text: CONVOY_BATCH"), "{}", said(&output));
}

/// Before the first update, the learning rate is not to blame.
#[test]
fn initial_weights_and_the_learning_rate_are_told_apart() {
    let (folder, model, data) = sound();
    let text = fs::read_to_string(&model).unwrap();
    fs::write(&model, text.replacen("name = \"conv1\"", "name = \"conv1\"\ninit = { std = 1e38 }", 1)).unwrap();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    refused("train --steps 1 --batch 5", paths, FAILED, &["finite at step 1", "check the initial weights", "--init"]);
    fs::write(&model, text).unwrap();
    refused("train --steps 1 --batch 5 --lr 1e30", paths, FAILED, &["finite", "a smaller --lr"]);
}

/// Metrics that are removed during a run are missed at its end.
#[test]
fn metrics_that_disappear_during_a_run_are_missed() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    command.args("train --data bundled --batch 16 --epochs 50 --trace off".split_whitespace()).arg("--out").arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    support::wait_for("a step", || (!support::losses(&out).is_empty()).then_some(()));
    fs::remove_file(out.join("metrics.jsonl")).unwrap();
    support::signal(child.id(), "INT");
    let output = support::finish(child);
    assert_eq!(output.status.code(), Some(FAILED), "{}", said(&output));
    for part in ["interrupted after", "metrics.jsonl", "it was removed or replaced during the run"] {
        assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
}

/// A person is told at the next checkpoint, which may come long before the end. Checkpoints are written all the same.
#[test]
fn metrics_that_are_replaced_are_missed_at_the_next_checkpoint() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut command = support::convoy();
    let job = "train --data bundled --batch 16 --epochs 5000 --checkpoint-every 20 --trace off";
    command.args(job.split_whitespace()).arg("--out").arg(&out);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    wait_for("a checkpoint", || support::newest_checkpoint(&out));
    fs::copy(out.join("metrics.jsonl"), out.join("copy")).unwrap();
    fs::rename(out.join("copy"), out.join("metrics.jsonl")).unwrap();
    let line = support::line_with(child.stdout.as_mut().unwrap(), "it was removed or replaced during the run");
    assert!(line.contains("metrics.jsonl"), "{line}");
    support::signal(child.id(), "INT");
    assert_eq!(support::finish(child).status.code(), Some(FAILED));
    succeed(&format!("verify {}", out.display()), &[]);
}

#[test]
fn a_folder_without_a_run_and_a_run_without_a_trace_are_told_apart() {
    let folder = TempDir::new().unwrap();
    let trace = format!("trace {}", folder.path().display());
    refused(&trace, &[], FAILED, &["is not the folder of a run: it has no run.json"]);
    let out = folder.path().join("run");
    succeed("train --data bundled --batch 16 --steps 1 --trace off", &[("--out", &out)]);
    refused(&format!("trace {}", out.display()), &[], FAILED, &["trace.json does not exist: the run used --trace off"]);
}

/// A batch that is larger than the set is a batch of the whole set, also for memory.
#[test]
fn a_batch_of_more_images_than_there_are_is_a_batch_of_them_all() {
    let folder = TempDir::new().unwrap();
    let hashes = ["5000", "1048576"].map(|batch| {
        let out = folder.path().join(batch);
        let text = support::succeed(
            &format!("train --data bundled --steps 1 --trace off --batch {batch}"),
            &[("--out", &out)],
        );
        assert!(text.contains("5000 images each"), "{text}");
        support::hash(&out)
    });
    assert_eq!(hashes[0], hashes[1]);
}

/// A run whose checkpoints were removed: its records stay, under other names.
#[test]
fn records_without_a_checkpoint_are_set_aside() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    succeed("train --steps 3 --batch 8", paths);
    let before = ["run.json", "metrics.jsonl"].map(|name| fs::read(out.join(name)).unwrap());
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let text = succeed("train --steps 2 --batch 8", paths);
    assert!(text.contains("are now run-1.json and metrics-1.jsonl"), "{text}");
    assert_eq!(before, ["run-1.json", "metrics-1.jsonl"].map(|name| fs::read(out.join(name)).unwrap()));
    assert_eq!(losses(&out).len(), 2);
    // The same if the job continues another run there, and if only the result is left.
    let other = folder.path().join("other");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &other)];
    succeed("train --steps 3 --batch 8", paths);
    fs::remove_dir_all(other.join("checkpoints")).unwrap();
    fs::remove_file(other.join("metrics.jsonl")).unwrap();
    let text = succeed("train --steps 4", &[("--resume", &out), ("--data", &data), ("--out", &other)]);
    assert!(text.contains("are now run-1.json\n"), "{text}");
    assert_eq!((record(&other)["final"]["steps"].as_u64(), losses(&other).len()), (Some(4), 4));
}

/// A checkpoint without the sum of its manifest, and one with the name of another step.
#[test]
fn incomplete_and_misnamed_checkpoints_are_damaged() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    succeed("train --steps 6 --batch 5 --checkpoint-every 2", paths);
    let step = |step: &str| out.join("checkpoints").join(step);
    let verify = format!("verify {}", out.display());
    fs::remove_file(step("step-000006").join("manifest.sha256")).unwrap();
    refused(&verify, &[], FAILED, &["step-000006 is damaged: manifest.sha256 is missing", "1 of 3"]);
    fs::remove_dir_all(step("step-000006")).unwrap();
    fs::rename(step("step-000002"), step("step-000009")).unwrap();
    refused(&verify, &[], FAILED, &["step-000009 holds step 2, and must be named step-000002", "1 of 2"]);
    let one = format!("verify {}", step("step-000009").display());
    refused(&one, &[], FAILED, &["step-000009 holds step 2, and must be named step-000002", "1 of 1"]);
    fs::rename(step("step-000009"), folder.path().join("copied")).unwrap();
    let copied = format!("verify {}", folder.path().join("copied").display());
    assert!(succeed(&copied, &[]).contains("sound"), "outside of a run, it may have any name");
    fs::rename(folder.path().join("copied"), step("step-000009")).unwrap();
    let output = run("train", &[("--resume", &out), ("--data", &data)]);
    for part in ["step-000004 instead", "step-000009, which is later, is now called later-step-000009"] {
        assert!(output.status.success() && said(&output).contains(part), "no \"{part}\" in {}", said(&output));
    }
    let text = succeed(&verify, &[]);
    assert!(text.contains("step-000006") && !text.contains("step-000009"), "{text}");
}

/// What else can lie at the place of a checkpoint, or of one of its files. Nothing waits for a pipe, and nothing fails because of it.
#[test]
fn a_checkpoint_that_is_no_folder_and_a_file_that_is_no_file_are_damaged() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    succeed("train --steps 6 --batch 5 --checkpoint-every 2", paths);
    let whole = support::hash(&out);
    let step = |step: &str| out.join("checkpoints").join(step);
    let verify = format!("verify {}", out.display());
    fs::remove_dir_all(step("step-000002")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", step("step-000002")).unwrap();
    fs::remove_dir_all(step("step-000006")).unwrap();
    fs::write(step("step-000006"), "mine").unwrap();
    refused(&verify, &[], FAILED, &["damaged", "step-000002", "step-000006", "2 of 3"]);
    let output = run("train", &[("--resume", &out), ("--data", &data)]);
    assert!(output.status.success() && said(&output).contains("step-000004 instead"), "{}", said(&output));
    assert_eq!(support::hash(&out), whole);
    let weights = step("step-000006").join("weights.safetensors");
    fs::remove_file(&weights).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&weights).status().unwrap().success());
    refused(&verify, &[], FAILED, &["step-000006", "it is not a regular file"]);
    let record = out.join("run.json");
    fs::remove_file(&record).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&record).status().unwrap().success());
    let output = run("train", &[("--resume", &out), ("--data", &data)]);
    assert!(output.status.success() && said(&output).contains("step-000004 instead"), "{}", said(&output));
    assert!(said(&output).contains("run.json: it is not a regular file"), "{}", said(&output));
    assert_eq!(support::hash(&out), whole);
}

/// Metrics that end before the checkpoint are a gap in the records, and what a killed writer left is removed.
#[test]
fn a_gap_in_the_metrics_is_named_and_temporary_files_go() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    succeed("train --steps 6 --batch 5 --checkpoint-every 4", paths);
    fs::remove_dir_all(out.join("checkpoints/step-000006")).unwrap();
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let first: String = metrics.lines().take(2).map(|line| format!("{line}\n")).collect();
    fs::write(out.join("metrics.jsonl"), first).unwrap();
    let left = out.join(".metrics.jsonl.0123456789abcdef.tmp");
    fs::write(&left, "cut sho").unwrap();
    let text = succeed("train", &[("--resume", &out), ("--data", &data)]);
    assert!(text.contains("steps 3 to 4 are missing in it"), "{text}");
    assert!(!left.exists());
}

/// A job that was killed before its first checkpoint can only be started again.
#[test]
fn a_run_without_a_checkpoint_says_how_to_start_it_again() {
    let (folder, model, data) = sound();
    let out = folder.path().join("run");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &out)];
    succeed("train --steps 2 --batch 5", paths);
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    refused("train", &[("--resume", &out)], FAILED, &["has no checkpoint yet", "--resume auto --out"]);
    succeed("train --steps 2 --batch 5 --resume auto", paths);
}

/// A trace of steps that the run does not have, and a job that is at its end already.
#[test]
fn a_run_without_the_steps_that_were_asked_for_says_so() {
    let (folder, model, data) = sound();
    let (out, other) = (folder.path().join("run"), folder.path().join("other run"));
    let text = succeed(
        "train --steps 3 --batch 40 --trace steps:5-6",
        &[("--model", &model), ("--data", &data), ("--out", &out)],
    );
    assert!(text.contains("--trace steps:5-6 keeps no step: this run has steps 1 to 3"), "{text}");
    assert!(text.contains("steps    1 to 3, 30 images each"), "{text}");
    let text = succeed("train", &[("--resume", &out), ("--data", &data), ("--out", &other)]);
    assert!(text.contains("steps    none: the job is already at its last step, 3"), "{text}");
    let paths: &[(&str, &Path)] = &[("--model", &model), ("--data", &data), ("--out", &other)];
    refused("train --steps 3", paths, MISUSED, &["--resume '", "other run'"]);
}
