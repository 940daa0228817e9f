//! Helpers of the whole-system suites: they run the built program with a time limit, read its results, and write data and
//! weights for it. No expected results here.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Ends a command that hangs. Commands of these suites take far less, also on a machine with many other processes.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

/// The built program, which hears of no setting by accident.
pub(crate) fn convoy() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoy"));
    forget_settings(&mut command);
    command.env("CONVOY_OFFLINE", "1").stdin(Stdio::null());
    command
}

/// Keeps from a command what the environment says to Convoy.
pub(crate) fn forget_settings(command: &mut Command) {
    let settings = std::env::vars_os().map(|(name, _)| name);
    for name in settings.filter(|name| name.as_encoded_bytes().starts_with(b"CONVOY_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
}

/// Runs the program to its end. Arguments are split at spaces; paths come extra.
pub(crate) fn run(arguments: &str, paths: &[(&str, &Path)]) -> Output {
    let mut command = convoy();
    command.args(arguments.split_whitespace());
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    output_of(&mut command)
}

/// Runs the program, and fails with what it said unless it succeeds. Its standard output.
pub(crate) fn succeed(arguments: &str, paths: &[(&str, &Path)]) -> String {
    let output = run(arguments, paths);
    assert!(output.status.success(), "convoy {arguments} ended with {:?}\n{}", output.status.code(), said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that a run said.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command to its end, and ends it when that takes too long.
pub(crate) fn output_of(command: &mut Command) -> Output {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).start())
}

/// Waits for a started program, and ends it when that takes too long.
pub(crate) fn finish(mut child: Process) -> Output {
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > LIMIT {
            drop(child);
            panic!("still running after {LIMIT:?}:\n{}", String::from_utf8_lossy(&stderr.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Ends workers. What they have logged.
pub(crate) fn end(workers: impl IntoIterator<Item = Process>) -> String {
    let ended = workers.into_iter().map(|worker| {
        signal(worker.id(), "TERM");
        said(&finish(worker))
    });
    ended.collect()
}

/// Where a coordinator that was started with `--listen 127.0.0.1:0` waits for its workers, as it says on standard output.
pub(crate) fn listening_at(coordinator: &mut Process) -> String {
    let before = "waiting for workers at ";
    let line = line_with(coordinator.stdout.as_mut().unwrap(), before);
    line.split_once(before).unwrap().1.split_once(": ").unwrap().0.to_owned()
}

/// The first line of a process that contains `part`. The rest is left in the pipe.
pub(crate) fn line_with(pipe: &mut impl Read, part: &str) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    while pipe.read(&mut byte).unwrap() == 1 {
        match byte[0] {
            b'\n' if line.contains(part) => return line,
            b'\n' => line.clear(),
            byte => line.push(byte as char),
        }
    }
    panic!("the process ended without a line with \"{part}\"");
}

/// An address of this machine that nothing else uses. All of 127.0.0.0/8 is this machine: each process of tests has an address of its own,
/// and ports below those that the system hands out. A port that the system handed out, and that was closed again, could be handed out
/// to another process.
pub(crate) fn free_address() -> String {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);
    // Process numbers have at most 22 bits.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    format!("127.{}.{b}.{c}:{}", 64 + a, NEXT_PORT.fetch_add(1, Ordering::Relaxed))
}

/// A process that ends with the test, even if the test fails.
pub(crate) struct Process(Child);

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts processes that end with the test.
pub(crate) trait Start {
    /// Starts the command.
    fn start(&mut self) -> Process;
}

impl Start for Command {
    fn start(&mut self) -> Process {
        Process(self.spawn().unwrap())
    }
}

/// Waits until `found` finds something, and fails when that takes too long.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(thing) = found() {
            return thing;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A run's `run.json`.
pub(crate) fn record(out: &Path) -> Value {
    let text = std::fs::read(out.join("run.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// A run's final hash.
pub(crate) fn hash(out: &Path) -> String {
    let record = record(out);
    record["final"]["weights_sha256"].as_str().unwrap_or_else(|| panic!("no final hash in {record:#}")).to_owned()
}

/// The lines of a run's metrics that tell of steps: number and the loss's bits.
pub(crate) fn losses(out: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?.to_bits()))).collect()
}

/// The processes of a run's workers, as it has recorded them.
pub(crate) fn worker_processes(out: &Path) -> Vec<u32> {
    let text = std::fs::read(out.join("run.json")).unwrap_or_default();
    let record: Value = serde_json::from_slice(&text).unwrap_or_default();
    let workers = record["workers"].as_array().cloned().unwrap_or_default();
    workers.iter().map(|worker| worker["process_id"].as_u64().unwrap() as u32).collect()
}

/// The state letter in the `stat` file of a process or of a thread, if it exists.
fn state(stat: &Path) -> Option<char> {
    std::fs::read_to_string(stat).ok()?.rsplit(')').next()?.trim_start().chars().next()
}

/// Whether a process is there and not merely waiting to be reaped.
pub(crate) fn is_alive(process: u32) -> bool {
    state(Path::new(&format!("/proc/{process}/stat"))).is_some_and(|state| state != 'Z')
}

/// Whether no thread of a process runs until it is continued. Also true of a process that has ended.
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| state(&thread.path().join("stat"))).all(|state| "TZX".contains(state))
}

/// Sends a signal to a process. After STOP, waits until the process has stopped: `kill` returns earlier, and on a busy machine, threads of
/// the process may still run.
pub(crate) fn signal(process: u32, name: &str) {
    assert!(
        Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success(),
        "kill -s {name} {process}"
    );
    if name == "STOP" {
        wait_for("a process to stop", || is_stopped(process).then_some(()));
    }
}

/// Images (count, channel, row, column) and labels.
pub(crate) struct Images {
    /// Bytes of all images.
    pub(crate) pixels: Vec<u8>,
    /// Channels, rows and columns of one.
    pub(crate) shape: [usize; 3],
    /// One an image.
    pub(crate) labels: Vec<u8>,
}

/// Writes training and test images under MNIST's names, as IDX files.
pub(crate) fn write_data(folder: &Path, train: &Images, test: &Images) {
    for (name, images) in [("train", train), ("t10k", test)] {
        let [channels, rows, columns] = images.shape;
        let count = images.labels.len();
        assert_eq!(images.pixels.len(), count * channels * rows * columns);
        let dimensions = if channels == 1 { vec![count, rows, columns] } else { vec![count, channels, rows, columns] };
        let file = format!("{name}-images-idx{}-ubyte", dimensions.len());
        write_idx(&folder.join(file), &dimensions, &images.pixels);
        write_idx(&folder.join(format!("{name}-labels-idx1-ubyte")), &[count], &images.labels);
    }
}

fn write_idx(path: &Path, dimensions: &[usize], bytes: &[u8]) {
    let mut file = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|length| file.extend((*length as u32).to_be_bytes()));
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

/// A tensor of a safetensors file.
pub(crate) type Tensor = (String, Vec<usize>, Vec<f32>);

/// Writes a safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    std::fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

/// Reads a tensor of a safetensors file.
pub(crate) fn read_tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap_or_else(|_| panic!("no tensor {name} in {}", path.display()));
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

/// The newest checkpoint of a run.
pub(crate) fn checkpoint(out: &Path) -> PathBuf {
    newest_checkpoint(out).unwrap_or_else(|| panic!("no checkpoint in {}", out.display()))
}

/// The newest checkpoint of a run, if there is one. Those that are being written have hidden names.
pub(crate) fn newest_checkpoint(out: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
    let whole = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    whole.map(|entry| entry.path()).max()
}

/// Four towers, groups of 4 and 8, ten classes: slices of the last layer are uneven.
pub(crate) const FOUR_TOWERS: &str = r#"
name = "four-towers"
towers = 4
input = { channels = 1, height = 28, width = 28, mean = [0.286], std = [0.353] }
[[layer]]
kind = "conv"
name = "conv1"
filters = 16
kernel = 5
stride = 2
[[layer]]
kind = "relu"
[[layer]]
kind = "conv"
name = "conv2"
filters = 32
kernel = 3
pad = 1
groups = 4
[[layer]]
kind = "relu"
[[layer]]
kind = "conv"
name = "conv3"
filters = 32
kernel = 3
pad = 1
groups = 8
[[layer]]
kind = "max_pool"
kernel = 3
stride = 2
[[layer]]
kind = "conv"
name = "conv4"
filters = 16
kernel = 3
[[layer]]
kind = "relu"
[[layer]]
kind = "linear"
name = "fc5"
units = 30
[[layer]]
kind = "relu"
[[layer]]
kind = "dropout"
name = "drop5"
p = 0.5
[[layer]]
kind = "linear"
name = "fc6"
units = 10
"#;

/// Folders with real images, unpacked into `folder`: photographs of signs, and the test images of CIFAR-10. They are too large to be part of the
/// project, so they may not be here.
pub(crate) fn real_images(folder: &Path) -> Option<[PathBuf; 2]> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let place = folder.join("real");
    std::fs::create_dir_all(&place).unwrap();
    for archive in ["sign-digits.tar", "cifar10-jpeg.tar.zst"] {
        let mut command = Command::new("tar");
        command.arg("-xaf").arg(data.join(archive)).arg("-C").arg(&place);
        if !data.join(archive).is_file() || !output_of(&mut command).status.success() {
            skip(&format!("{archive} is not in ../shared/data, or tar can't unpack it"));
            return None;
        }
    }
    Some([place.join("signs"), place.join("test")])
}

/// A preset for images that have the size of its input already, without what training does to them.
pub(crate) fn as_they_are(text: &str) -> String {
    let keys = ["resize = 256, ", "square = true, ", "crop = \"random\", ", "mirror = true, ", "colour_noise = 0.1, "];
    keys.iter().fold(text.to_owned(), |text, key| text.replace(key, ""))
}

/// Says that a test can't run here, and why; and fails where nothing may be skipped.
pub(crate) fn skip(why: &str) {
    let skipped = format!("SKIPPED: {why}");
    assert!(std::env::var_os("CONVOY_NO_SKIPS").is_none(), "{skipped}");
    #[allow(clippy::explicit_write, reason = "the harness keeps what a macro prints to itself")]
    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{skipped}\n")).unwrap();
}

/// What a real browser sees of a page, if there is one.
pub(crate) fn look_at(path: &Path) -> Option<Value> {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    if !has(&python, &["-c", "import selenium"]) || !has("chromedriver", &["--version"]) {
        skip(&format!("{python} has no selenium, or there is no chromedriver"));
        return None;
    }
    let output = output_of(Command::new(&python).arg("tests/support/page.py").arg(path));
    assert!(output.status.success(), "{}", said(&output));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["log"], Value::Array(Vec::new()));
    Some(seen)
}
