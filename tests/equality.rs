//! The same bits on any cluster: the final weights and the loss of every step are compared over workers, threads,
//! micro-batches, transports and interruptions. Every case proves that its setting took effect.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::{Process, Start as _, hash, losses, record, signal, succeed, wait_for, worker_processes};
use tempfile::TempDir;

const STEPS: u64 = 6;

/// A job whose bits are compared over many ways to run it.
struct Case {
    folder: TempDir,
    model: String,
    slots: usize,
}

/// One way to run it.
#[derive(Clone, Copy, Debug)]
struct Way {
    workers: usize,
    threads: usize,
    micro_batches: usize,
    seed: u64,
}

const PLAIN: Way = Way { workers: 1, threads: 1, micro_batches: 1, seed: 5 };

impl Case {
    fn new(model: &str, slots: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let model = if model == "four-towers" {
            let path = folder.path().join("model.toml");
            std::fs::write(&path, support::FOUR_TOWERS).unwrap();
            path.to_str().unwrap().to_owned()
        } else {
            model.to_owned()
        };
        Self { folder, model, slots }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self, way: Way) -> String {
        let Way { workers, micro_batches, seed, .. } = way;
        format!(
            "train --model {} --data bundled --steps {STEPS} --batch 24 --slots {} --seed {seed} --workers {workers} --micro-batches {micro_batches}",
            self.model, self.slots
        )
    }

    /// Runs the job over workers of its own, and checks that it was run that way.
    fn embedded(&self, name: &str, way: Way) -> (String, Vec<(u64, u64)>) {
        let out = self.out(name);
        succeed(&format!("{} --threads {}", self.arguments(way), way.threads), &[("--out", &out)]);
        self.check(&out, way);
        (hash(&out), losses(&out))
    }

    fn check(&self, out: &Path, way: Way) {
        let record = record(out);
        let mut processes = worker_processes(out);
        processes.dedup();
        assert_eq!(processes.len(), way.workers, "distinct processes");
        assert!(!processes.contains(&std::process::id()));
        for worker in record["workers"].as_array().unwrap() {
            assert_eq!(worker["threads"], way.threads, "{way:?}: {worker}");
            // The system's scheduler decides which threads get work: in a short job on a busy machine, one may do all of it.
            let busy = worker["busy_threads"].as_u64().unwrap();
            assert!((1..=way.threads as u64).contains(&busy), "{way:?}: {worker}");
        }
        let towers = if self.model.ends_with("toml") { 4 } else { 2 };
        let logits = tensors(&record, "backward", None);
        assert_eq!(logits, 0, "gradients of logits go down, not up");
        let micro_batches = STEPS * (self.slots * way.micro_batches) as u64;
        if way.workers == towers {
            // Each tower computes a partial gradient for every other one.
            let expected = micro_batches * (towers * (towers - 1)) as u64;
            assert_eq!(tensors(&record, "backward", Some(0)), expected, "{way:?}");
        }
        assert_eq!(losses(out).len() as u64, STEPS);
    }
}

/// Tensors that crossed an exchange; of none, the last one.
fn tensors(record: &Value, direction: &str, exchange: Option<u64>) -> u64 {
    let all = record["exchanges"].as_array().unwrap();
    let last = all.iter().filter_map(|e| e["exchange"].as_u64()).max();
    let wanted = exchange.or(last).unwrap();
    let found = all.iter().filter(|e| e["direction"] == direction && e["exchange"] == wanted);
    found.map(|e| e["tensors"].as_u64().unwrap()).sum()
}

/// Workers, threads and micro-batches leave no trace; another seed does.
fn check_ways(model: &str, slots: usize, workers: &[usize]) -> String {
    let case = Case::new(model, slots);
    let plain = case.embedded("plain", PLAIN);
    let mut ways: Vec<Way> =
        workers.iter().map(|workers| Way { workers: *workers, micro_batches: 2, ..PLAIN }).collect();
    ways.push(Way { threads: 2, ..PLAIN });
    ways.push(Way { threads: 3, ..PLAIN });
    ways.push(Way { workers: 2, micro_batches: 4, ..PLAIN });
    for (index, way) in ways.into_iter().enumerate() {
        assert_eq!(plain, case.embedded(&format!("way-{index}"), way), "{model} with {slots} slots, {way:?}");
    }
    let kept = case.out("snapshots");
    succeed(
        &format!("{} --threads 1 --snapshot-every 1 --checkpoint-every 3", case.arguments(PLAIN)),
        &[("--out", &kept)],
    );
    assert_eq!(plain, (hash(&kept), losses(&kept)), "{model} with a snapshot after every step");
    let other = case.embedded("other-seed", Way { seed: 6, ..PLAIN });
    assert_ne!(plain.0, other.0, "another seed");
    plain.0
}

#[test]
fn alexnet_fashion_has_one_result_for_each_number_of_slots() {
    let one = check_ways("alexnet-fashion", 1, &[2]);
    let two = check_ways("alexnet-fashion", 2, &[2]);
    assert_ne!(one, two, "slots belong to the job");
}

#[test]
fn the_dense_twin_has_one_result_for_each_number_of_slots() {
    assert_ne!(check_ways("alexnet-fashion-dense", 1, &[2]), check_ways("alexnet-fashion-dense", 2, &[2]));
}

#[test]
fn four_towers_have_one_result_for_each_number_of_slots() {
    assert_ne!(check_ways("four-towers", 1, &[2, 3, 4]), check_ways("four-towers", 2, &[4]));
}

/// One tower with groups, so that it can be divided only among replicas.
const ONE_TOWER: &str = r#"
name = "one-tower"
towers = 1
input = { channels = 1, height = 28, width = 28 }
[[layer]]
kind = "conv"
name = "c1"
filters = 6
kernel = 5
stride = 2
[[layer]]
kind = "relu"
[[layer]]
kind = "conv"
name = "c2"
filters = 20
kernel = 3
groups = 2
[[layer]]
kind = "max_pool"
kernel = 2
[[layer]]
kind = "linear"
name = "f1"
units = 17
[[layer]]
kind = "relu"
[[layer]]
kind = "dropout"
p = 0.4
[[layer]]
kind = "linear"
name = "f2"
units = 10
"#;

/// A job on `workers` workers, by its records: the hash, the losses, and what was measured after each epoch.
fn replicated(
    folder: &Path,
    (model, towers): (&str, usize),
    [slots, workers, seed]: [usize; 3],
) -> (String, Vec<(u64, u64)>, Vec<String>) {
    let (out, data) = (folder.join(format!("{slots}-{workers}-{seed}")), folder.join("data"));
    // These change nothing, so they vary along with the workers.
    let (threads, micro_batches) = (1 + workers % 2, 1 + workers % 3);
    let exchange = if (slots + workers).is_multiple_of(3) { "relay" } else { "direct" };
    let text = format!(
        "train --model {model} --steps 4 --batch 27 --slots {slots} --seed {seed} --workers {workers} --threads {threads} \
         --micro-batches {micro_batches} --exchange {exchange}"
    );
    succeed(&text, &[("--data", &data), ("--out", &out)]);
    let record = record(&out);
    let mut processes = worker_processes(&out);
    processes.dedup();
    assert_eq!(processes.len(), workers, "distinct processes");
    assert_eq!(record["running"]["replicas"], workers.div_ceil(towers), "{slots} slots, {workers} workers");
    let held = |worker: &Value| worker["towers"].as_array().unwrap().len() + worker["slices"].as_array().unwrap().len();
    assert!(record["workers"].as_array().unwrap().iter().all(|worker| held(worker) > 0), "{record}");
    let exchanges = record["exchanges"].as_array().unwrap();
    let gradients: u64 =
        exchanges.iter().filter(|e| e["direction"] == "gradients").map(|e| e["bytes"].as_u64().unwrap()).sum();
    // Epochs have a step of 27 images and one of 3.
    let planned = [27, 3].map(|batch| {
        let plan = succeed(
            &format!(
                "plan --json --model {model} --batch 27 --slots {slots} --workers {workers} --exchange {exchange}"
            ),
            &[],
        );
        let whole: Value = serde_json::from_str(&plan).unwrap();
        let few = batch < slots;
        // What is relayed counts on the way to the coordinator.
        let way = if exchange == "relay" { "up" } else { "across" };
        assert_eq!(record["planned_step_traffic"]["across"].as_u64() > Some(0), exchange == "direct" && workers > 1);
        whole["gradients"][way].as_u64().filter(|_| !few)
    });
    if let [Some(whole), Some(last)] = planned {
        assert_eq!(gradients, 2 * (whole + last), "planned bytes: {slots} slots, {workers} workers");
    } else {
        assert_eq!(gradients > 0, workers > towers, "{slots} slots, {workers} workers");
    }
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let epochs = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let measured = epochs
        .filter(|line| line["test_loss"].is_f64())
        .map(|line| format!("{} {}", line["test_loss"], line["test_accuracy"]));
    (hash(&out), losses(&out), measured.collect())
}

/// On every number of workers up to eight that a job allows. The batch does not divide into slots, and the last one of an epoch is
/// smaller than the number of slots, so some replicas have nothing to compute.
fn check_replicas(model: &str, towers: usize, slots: &[usize]) {
    let folder = TempDir::new().unwrap();
    let images = |count: usize| support::Images {
        pixels: (0..count * 784).map(|i| (i * 31 % 251) as u8).collect(),
        shape: [1, 28, 28],
        labels: (0..count).map(|i| (i % 10) as u8).collect(),
    };
    std::fs::create_dir(folder.path().join("data")).unwrap();
    support::write_data(&folder.path().join("data"), &images(30), &images(13));
    let text = match model {
        "four-towers" => Some(support::FOUR_TOWERS.to_owned()),
        "one-tower" => Some(ONE_TOWER.to_owned()),
        "one-tower-of-three-slices" => Some(with_slices(ONE_TOWER, 3)),
        "two-towers-of-three-slices" => {
            Some(with_slices(&std::fs::read_to_string("models/alexnet-fashion.toml").unwrap(), 3))
        }
        _ => None,
    };
    let path = folder.path().join(format!("{model}.toml"));
    let model = text.map_or(model, |text| {
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap()
    });
    let mut of_slots = Vec::new();
    for slots in slots.iter().copied() {
        let one = replicated(folder.path(), (model, towers), [slots, 1, 5]);
        assert_eq!((one.1.len(), one.2.len()), (4, 2));
        for workers in 2..=(towers * slots).min(8) {
            assert_eq!(
                one,
                replicated(folder.path(), (model, towers), [slots, workers, 5]),
                "{model}: {slots} slots, {workers} workers"
            );
        }
        of_slots.push(one.0);
        let run = folder.path().join(format!("{slots}-1-5"));
        let measured = [1, (towers * slots).min(8)].map(|workers| {
            let text = succeed(&format!("eval {} --workers {workers} --json", run.display()), &[]);
            let found: Value = serde_json::from_str(&text).unwrap();
            assert!(found["loss"].is_f64(), "{text}");
            format!("{} {}", found["loss"], found["correct"])
        });
        assert_eq!(measured[0], measured[1], "{model}: measured on one worker and on many");
    }
    let other = replicated(folder.path(), (model, towers), [slots[0], (towers * slots[0]).min(8), 6]);
    assert!(!of_slots.contains(&other.0), "another seed");
    of_slots.sort();
    of_slots.dedup();
    assert_eq!(of_slots.len(), slots.len(), "{model}: slots belong to the job");
}

#[test]
fn alexnet_fashion_has_the_same_bits_on_one_to_eight_workers() {
    check_replicas("alexnet-fashion", 2, &[1, 2, 3, 4, 6, 8]);
}

#[test]
fn the_dense_twin_has_the_same_bits_on_one_to_eight_workers() {
    check_replicas("alexnet-fashion-dense", 2, &[2, 3]);
}

#[test]
fn four_towers_have_the_same_bits_on_one_to_eight_workers() {
    check_replicas("four-towers", 4, &[2, 3]);
}

#[test]
fn one_tower_has_the_same_bits_on_one_to_eight_workers() {
    check_replicas("one-tower", 1, &[2, 5, 8]);
}

/// The head is divided into more slices than there are towers, so some workers hold slices and towers, and some hold towers alone.
#[test]
fn heads_of_three_slices_have_the_same_bits_on_one_to_eight_workers() {
    check_replicas("one-tower-of-three-slices", 1, &[2, 4]);
    check_replicas("two-towers-of-three-slices", 2, &[2, 4]);
}

/// The same model, with its head divided into `slices` slices.
fn with_slices(model: &str, slices: usize) -> String {
    let text = model.replacen("\ntowers = ", &format!("\nhead = {slices}\ntowers = "), 1);
    assert_ne!(text, model);
    text
}

fn worker(address: &str) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--join", address, "--threads", "1"]).stderr(Stdio::null()).start()
}

/// Workers that dialled in over TCP give the bits of those that the coordinator started itself; two jobs one after
/// another find the same workers.
#[test]
fn workers_that_dialled_in_give_the_same_bits_job_after_job() {
    for (model, count) in [("alexnet-fashion", 2), ("alexnet-fashion-dense", 2), ("four-towers", 4)] {
        let case = Case::new(model, 1);
        let embedded = case.embedded("embedded", PLAIN);
        assert_ne!(embedded, case.embedded("other-seed", Way { seed: 6, ..PLAIN }), "{model}: another seed");
        let way = Way { workers: count, ..PLAIN };
        let address = support::free_address();
        let mut workers: Vec<Process> = (0..count).map(|_| worker(&address)).collect();
        for name in ["first", "second"] {
            let out = case.out(name);
            succeed(&format!("{} --listen {address}", case.arguments(way)), &[("--out", &out)]);
            case.check(&out, way);
            assert_eq!(embedded, (hash(&out), losses(&out)), "{model}, {name} job");
            let mut held = worker_processes(&out);
            let mut ours: Vec<u32> = workers.iter().map(|process| process.id()).collect();
            held.sort_unstable();
            ours.sort_unstable();
            assert_eq!(held, ours, "the workers that dialled in did the work");
        }
        for worker in &mut workers {
            signal(worker.id(), "TERM");
            assert_eq!(worker.wait().unwrap().code(), Some(0), "a worker leaves cleanly on SIGTERM");
        }
    }
}

/// `--threads` sets the number of compute threads of a worker's process. The main thread is the first of them. A unit test of
/// `Compute` shows that all of them share each kernel's work.
#[test]
fn a_worker_has_as_many_compute_threads_as_requested() {
    let case = Case::new("four-towers", 1);
    let (address, way) = (support::free_address(), Way { threads: 3, ..PLAIN });
    let mut command = support::convoy();
    command.args(["worker", "--join", &address, "--threads", "3"]).stderr(Stdio::null());
    let process = command.start();
    let out = case.out("three");
    succeed(&format!("{} --listen {address}", case.arguments(way)), &[("--out", &out)]);
    case.check(&out, way);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    // Another thread may end meanwhile.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut compute: Vec<String> = names.filter(|name| name.starts_with("compute-")).collect();
    compute.sort();
    assert_eq!(compute, ["compute-1\n", "compute-2\n"], "and the main thread");
}

/// Ctrl-C in mid-epoch, and on with another number of workers, threads and micro-batches: the bits of a job that was never
/// interrupted.
#[test]
fn an_interrupted_job_ends_in_the_bits_of_one_that_was_not() {
    for (model, slots) in [("alexnet-fashion", 1), ("alexnet-fashion-dense", 2), ("four-towers", 1)] {
        let case = Case::new(model, slots);
        let steps = 60;
        let arguments = case
            .arguments(Way { workers: 2, micro_batches: 2, ..PLAIN })
            .replace(&format!("--steps {STEPS}"), &format!("--steps {steps}"));
        let (whole, other) = (case.out("whole"), case.out("other"));
        succeed(&arguments, &[("--out", &whole)]);
        succeed(&arguments.replace("--seed 5", "--seed 6"), &[("--out", &other)]);
        assert_ne!(hash(&whole), hash(&other), "{model}: another seed");
        let out = case.out("cut");
        let mut command = support::convoy();
        command.args(arguments.split_whitespace()).arg("--out").arg(&out);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).start();
        wait_for("the fifth step", || (losses(&out).len() >= 5).then_some(()));
        signal(child.id(), "INT");
        let output = support::finish(child);
        assert_eq!(output.status.code(), Some(130), "{}", support::said(&output));
        let cut = record(&out);
        assert_eq!(cut["status"], "interrupted");
        let at = cut["final"]["steps"].as_u64().unwrap();
        assert!((5..steps).contains(&at), "interrupted at step {at} of {steps}");
        succeed("train --data bundled --workers 1 --threads 2 --micro-batches 3", &[("--resume", &out)]);
        assert_eq!(record(&out)["running"]["resumed"][1], at);
        assert_eq!(hash(&whole), hash(&out), "{model}");
        assert_eq!(losses(&whole), losses(&out), "{model}: each step once");
    }
}

/// From a checkpoint in the middle the metrics are cut back; and a later end goes on as if it had been the end from the
/// start.
#[test]
fn a_job_goes_on_from_an_older_checkpoint_and_to_a_later_end() {
    let case = Case::new("alexnet-fashion", 1);
    let base = case.arguments(PLAIN).replace(&format!("--steps {STEPS}"), "--schedule constant --lr 0.01");
    let (whole, out) = (case.out("whole"), case.out("out"));
    succeed(&format!("{base} --steps 9"), &[("--out", &whole)]);
    succeed(&format!("{base} --steps 6 --checkpoint-every 2"), &[("--out", &out)]);
    assert_ne!(hash(&whole), hash(&out));
    let epochs = |out: &Path| {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        text.lines().filter(|line| line.contains("through_step")).count()
    };
    assert_eq!(epochs(&out), 1, "a part of an epoch, measured because the job ended there");
    let older = out.join("checkpoints/step-000004");
    let said = succeed("train --data bundled --steps 9 --workers 2", &[("--resume", &older), ("--out", &out)]);
    assert!(said.contains("the run continues from step 4"), "{said}");
    assert_eq!(record(&out)["running"]["resumed"][1], 4);
    assert_eq!(hash(&whole), hash(&out));
    assert_eq!(losses(&whole), losses(&out));
}

/// A job whose coordinator and one of whose workers run on another kind of CPU, the other worker on this one, has the bits of
/// one that knows but this. `CONVOY_OTHER_CPU` is a command that runs a Convoy built for it, an emulator's perhaps.
#[test]
fn two_kinds_of_cpu_in_one_cluster_change_no_bits() {
    let Some(other) = std::env::var("CONVOY_OTHER_CPU").ok().filter(|command| !command.trim().is_empty()) else {
        return support::skip("CONVOY_OTHER_CPU names no Convoy for another kind of CPU, so no cluster has two");
    };
    let on_other_cpu = |arguments: &str| {
        let mut words = other.split_whitespace();
        let mut command = std::process::Command::new(words.next().unwrap());
        support::forget_settings(&mut command);
        command.env("CONVOY_OFFLINE", "1").stdin(Stdio::null()).args(words).args(arguments.split_whitespace());
        command
    };
    let folder = TempDir::new().unwrap();
    // Two towers, and two replicas of two towers, which sum their gradients.
    for (job, of_each) in [
        ("train --data bundled --batch 6 --steps 8 --micro-batches 2", 1),
        ("train --data bundled --batch 6 --steps 4 --slots 2", 2),
    ] {
        let [here, mixed, other_seed] =
            ["here", "mixed", "other-seed"].map(|name| folder.path().join(format!("{name}-{of_each}")));
        succeed(job, &[("--out", &here)]);
        succeed(&format!("{job} --seed 2"), &[("--out", &other_seed)]);
        assert_ne!(hash(&here), hash(&other_seed), "another seed");
        let mut command = on_other_cpu(&format!("{job} --workers {} --listen 127.0.0.1:0", 2 * of_each));
        let mut coordinator = command.arg("--out").arg(&mixed).stdout(Stdio::piped()).stderr(Stdio::piped()).start();
        let address = support::listening_at(&mut coordinator);
        let joining = || on_other_cpu(&format!("worker --join {address} --threads 1")).stderr(Stdio::null()).start();
        let _workers: Vec<_> = (0..of_each).flat_map(|_| [joining(), worker(&address)]).collect();
        let output = support::finish(coordinator);
        assert!(output.status.success(), "{}", support::said(&output));
        let record = record(&mixed);
        assert_eq!(record["running"]["replicas"], of_each);
        let mut used: Vec<String> =
            record["workers"].as_array().unwrap().iter().map(|worker| worker["instruction_set"].to_string()).collect();
        used.sort();
        used.dedup();
        assert_eq!(used.len(), 2, "both kinds of CPU computed: {used:?}");
        assert_eq!((hash(&here), losses(&here)), (hash(&mixed), losses(&mixed)));
    }
}

/// A job of 30 steps has the same bits on every instruction set that the machine has, each of which was used as asked; one
/// that it lacks is refused with those that there are.
#[test]
fn the_instruction_set_changes_no_bits() {
    let folder = TempDir::new().unwrap();
    let mut found = Vec::new();
    for isa in ["scalar", "avx2", "avx512", "neon"] {
        let out = folder.path().join(isa);
        let arguments = format!("train --data bundled --batch 2 --lr 0.01 --steps 30 --isa {isa}");
        let output = support::run(&arguments, &[("--out", &out)]);
        if output.status.code() == Some(2) {
            let said = support::said(&output);
            assert!(
                said.contains(&format!("instruction set \"{isa}\" is not available")) && said.contains("scalar"),
                "{said}"
            );
            assert!(!out.exists());
            continue;
        }
        assert!(output.status.success(), "{}", support::said(&output));
        for worker in record(&out)["workers"].as_array().unwrap() {
            assert_eq!(worker["instruction_set"], isa);
        }
        found.push((hash(&out), losses(&out)));
    }
    assert!(found.iter().all(|other| *other == found[0]) && found[0].1.len() == 30);
    let other_seed = folder.path().join("other-seed");
    succeed("train --data bundled --batch 2 --lr 0.01 --steps 30 --seed 2", &[("--out", &other_seed)]);
    assert_ne!(found[0].0, hash(&other_seed), "another seed");
    assert_eq!(found.len(), instruction_sets().len(), "each that the machine has was used");
}

/// The instruction sets of this machine.
fn instruction_sets() -> Vec<&'static str> {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flag.is_empty() || flags.split_whitespace().any(|word| word == flag);
    let all = [("scalar", ""), ("avx2", "avx2"), ("avx512", "avx512f"), ("neon", "asimd")];
    all.into_iter().filter(|(_, flag)| has(flag)).map(|(name, _)| name).collect()
}

/// Two replicas of two towers on workers with different instruction sets: at least one gradient is
/// summed by workers with different ones.
#[test]
fn several_instruction_sets_in_one_job_change_no_bits() {
    let sets = instruction_sets();
    let Some(last) = sets.last().filter(|_| sets.len() > 1) else {
        return support::skip("this machine has a single instruction set, so no job has two");
    };
    let folder = TempDir::new().unwrap();
    let job = "train --data bundled --batch 8 --slots 2 --steps 20 --lr 0.01";
    let [alone, mixed, other_seed] = ["alone", "mixed", "other-seed"].map(|name| folder.path().join(name));
    succeed(&format!("{job} --workers 1"), &[("--out", &alone)]);
    succeed(&format!("{job} --seed 2"), &[("--out", &other_seed)]);
    assert_ne!(hash(&alone), hash(&other_seed), "another seed");
    let mut command = support::convoy();
    command.args(job.split_whitespace()).args(["--workers", "4", "--listen", "127.0.0.1:0", "--out"]).arg(&mixed);
    let mut coordinator = command.stdout(Stdio::piped()).stderr(Stdio::piped()).start();
    let address = support::listening_at(&mut coordinator);
    let joining = |isa: &str| {
        let mut command = support::convoy();
        command.args(["worker", "--join", &address, "--threads", "1", "--isa", isa]).stderr(Stdio::null()).start()
    };
    let _workers: Vec<_> = sets.iter().chain(std::iter::repeat(last)).take(4).map(|isa| joining(isa)).collect();
    let output = support::finish(coordinator);
    assert!(output.status.success(), "{}", support::said(&output));
    let record = record(&mixed);
    assert_eq!(record["running"]["replicas"], 2);
    let workers = record["workers"].as_array().unwrap().iter();
    let used: BTreeSet<_> = workers.map(|worker| worker["instruction_set"].as_str().unwrap()).collect();
    assert_eq!(used, sets.into_iter().collect(), "each was used");
    assert_eq!((hash(&alone), losses(&alone)), (hash(&mixed), losses(&mixed)));
}
