#!/usr/bin/env python3
"""Compares the speed of Convoy and PyTorch on the same cores, in alternating runs.

Both train the same network with the same batch and the same SGD (momentum, weight decay), from data in memory. First, every
mode of PyTorch is tried for a few steps (see pytorch_peer.py). The fastest one then alternates with Convoy, which runs with its
default worker processes. Each run is a new process, and its first steps do not count. Accuracy is not measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))

try:
    import torch
    import torchnet
except ImportError as missing:
    sys.exit(f"compare_pytorch.py needs the Python packages torch and numpy (see benches/README.md): {missing}")

WAYS = ("eager", "compiled", "gloo")
LAYOUTS = ("nchw", "channels_last")
LEARNING_RATE = 0.01  # costs the same whatever it is; small, so that nothing overflows and is slow
# glibc gives large blocks back to the system at once and asks for them anew, page by page: PyTorch is faster without.
KEEPS_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}


class Failed(Exception):
    """Something that the user can mend, in a sentence."""


def run(command, args, **more):
    """What a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, cwd=ROOT, **more)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"it took longer than --timeout {args.timeout} s: {' '.join(command)}") from late
    if done.returncode != 0:
        raise Failed(f"it failed ({done.returncode}): {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def pytorch(args, way, layout, steps):
    """Seconds of each step of a turn of PyTorch's."""
    turn = {key: getattr(args, key) for key in ("model", "data", "batch", "cores", "momentum", "weight_decay", "seed")}
    turn |= {"way": way, "layout": layout, "steps": steps, "lr": LEARNING_RATE}
    command = [sys.executable, str(ROOT / "benches" / "pytorch_peer.py")]
    memory = {} if args.stock_malloc else KEEPS_MEMORY
    printed = run(command, args, input=json.dumps(turn), env=os.environ | memory)
    return json.loads(printed.splitlines()[-1])


def convoy(args, steps):
    """Seconds of each step of a job, as it says them."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "--model": args.model,
            "--data": args.data,
            "--steps": steps,
            "--batch": args.batch,
            "--lr": LEARNING_RATE,
            "--momentum": args.momentum,
            "--weight-decay": args.weight_decay,
            "--schedule": "constant",
            "--seed": args.seed,
            "--workers": args.workers,
            "--threads": args.threads,
            "--out": Path(folder) / "run",
        }
        options = [str(part) for pair in settings.items() for part in pair]
        printed = run([str(args.binary), "train", "--json", *options], args)
    events = map(json.loads, printed.splitlines())
    return [event["seconds"] for event in events if event["event"] == "step"]


def try_all(args, say):
    """The fastest way of PyTorch's, and milliseconds a step of each."""
    tried = {}
    for way in args.ways:
        for layout in LAYOUTS:
            took = pytorch(args, way, layout, args.warm_up + args.trial_steps)[args.warm_up :]
            tried[f"{way} {layout}"] = 1000 * statistics.median(took)
            say(f"PyTorch {torch.__version__}, {way}, {layout}: {tried[f'{way} {layout}']:.1f} ms a step")
    return min(tried, key=tried.get), tried


def compare(args, say):
    """Runs the rounds, A B A B; gives all that was found."""
    best, tried = try_all(args, say)
    steps = args.warm_up + args.steps
    speeds = {"pytorch": [], "convoy": []}
    for turn in range(1, args.rounds + 1):
        for name, one in (("pytorch", lambda: pytorch(args, *best.split(), steps)), ("convoy", lambda: convoy(args, steps))):
            took = one()[args.warm_up :]
            # The whole of them: what happens between two steps, or now and then, counts.
            speeds[name].append(args.batch * len(took) / sum(took))
            say(f"round {turn}  {name:8} {1000 * sum(took) / len(took):9.1f} ms a step  {speeds[name][-1]:9.1f} images/s")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "model": args.model,
        "batch": args.batch,
        "cores": args.cores,
        "steps": args.steps,
        "pytorch": {
            "version": torch.__version__,
            "way": best,
            "ms_per_step_tried": tried,
            "images_per_second": speeds["pytorch"],
            "median": medians["pytorch"],
        },
        "convoy": {
            "workers": args.workers,
            "threads": args.threads,
            "images_per_second": speeds["convoy"],
            "median": medians["convoy"],
        },
        "ratio": medians["convoy"] / medians["pytorch"],
    }


def stay_on(cores):
    """Keeps this process, and those that it starts, on so many cores."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores:
        raise Failed(f"--cores {cores}, but only {len(allowed)} may be used here")
    os.sched_setaffinity(0, allowed[:cores])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet-fashion", help="a preset or a model file (%(default)s)")
    parser.add_argument("--data", required=True, help="a folder of IDX files, or 'synthetic'")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (%(default)s)")
    parser.add_argument("--steps", type=int, default=938, help="steps per run (%(default)s, an epoch of Fashion-MNIST)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them that do not count (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (%(default)s)")
    parser.add_argument("--momentum", type=float, default=0.9, help="momentum of SGD (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="weight decay of SGD (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of initial weights and shuffling (%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="cores for each side, and PyTorch's threads (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="Convoy's worker processes (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker (%(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="modes of PyTorch to try (all)")
    parser.add_argument("--stock-malloc", action="store_true", help="run PyTorch with glibc's default malloc settings")
    parser.add_argument("--trial-steps", type=int, default=20, help="steps of each trial that chooses the mode (%(default)s)")
    parser.add_argument("--timeout", type=float, default=3600, help="the most seconds of one run (%(default)s)")
    parser.add_argument(
        "--binary",
        type=Path,
        default=ROOT / "target" / "release" / "convoy",
        help="the program (target/release/convoy)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and progress to stderr")
    args = parser.parse_args()
    if args.data != "synthetic":
        args.data = str(Path(args.data).resolve())
    if Path(args.model).is_file():
        args.model = str(Path(args.model).resolve())
    for name in ("rounds", "batch", "cores", "workers", "threads", "trial_steps", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} has to be at least 1")
    if args.warm_up < 0:
        parser.error("--warm-up has to be at least 0")
    args.binary = args.binary.resolve()
    return args


def main():
    args = arguments()
    try:
        if not args.binary.is_file():
            raise Failed(f"there is no {args.binary}: build it with `cargo build --release`, or name it with --binary")
        torchnet.parse_model(torchnet.read_model(args.model))
        stay_on(args.cores)
        found = compare(args, lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True))
    except (Failed, OSError, ValueError, KeyError) as problem:
        sys.exit(f"compare_pytorch.py: {problem}")
    if args.json:
        print(json.dumps(found))
        return
    for name in ("pytorch", "convoy"):
        print(f"median   {name:8} {found[name]['median']:9.1f} images/s")
    print(f"ratio    convoy / pytorch ({found['pytorch']['way']}), of images a second: {found['ratio']:.3f} (above 1: Convoy is faster)")


if __name__ == "__main__":
    main()
