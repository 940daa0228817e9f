#!/usr/bin/env python3
"""Convoy against PyTorch on the same cores, in turns: an epoch of one, an epoch of the other, and again.

Both train the same net with the same batch and the same SGD (momentum, weight decay), from data that is in memory.
PyTorch runs eagerly, with its pixels normalised beforehand, in whichever memory layout is faster here. Convoy runs as
anybody would start it, with worker processes of its own; its time is the one it writes into metrics.jsonl, training
without evaluation. This isn't a test of accuracy: nobody looks at what has been learnt.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))

try:
    import torch

    import torchnet
except ImportError as missing:
    sys.exit(f"compare_pytorch.py needs the Python packages torch and numpy (see benches/README.md): {missing}")

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
LEARNING_RATE = 0.01  # costs the same whatever it is; small, so that nothing overflows and is slow


class Failed(Exception):
    """Something that the user can mend, in a sentence."""


# --- PyTorch ------------------------------------------------------------------------------------------------------


class Peer:
    """The net, its optimiser and its data in one memory layout."""

    def __init__(self, model, pixels, labels, layout, args):
        self.layout, self.batch = layout, args.batch
        self.net = torchnet.Net(model)
        torchnet.initialise(self.net, model, seed=args.seed)
        self.net.train().to(memory_format=LAYOUTS[layout])
        self.pixels, self.labels = pixels.contiguous(memory_format=LAYOUTS[layout]), labels
        self.sgd = torch.optim.SGD(
            self.net.parameters(), lr=LEARNING_RATE, momentum=args.momentum, weight_decay=args.weight_decay
        )

    def train(self, steps=None):
        """Trains an epoch in shuffled order, or so many steps; gives seconds and images."""
        images, done, step = 0, False, 0
        start = time.perf_counter()
        while not done:
            order = torch.randperm(len(self.labels))
            for chosen in order.split(self.batch):
                self.step(chosen)
                images, step = images + len(chosen), step + 1
                if step == steps:
                    break
            done = steps is None or step >= steps
        return time.perf_counter() - start, images

    def step(self, chosen):
        self.sgd.zero_grad(set_to_none=True)
        logits = self.net(self.pixels[chosen].contiguous(memory_format=LAYOUTS[self.layout]))
        loss = torch.nn.functional.cross_entropy(logits, self.labels[chosen])
        loss.backward()
        self.sgd.step()
        return loss.item()


def load_data(model, args):
    """All training pixels as floats, and labels; a few batches of noise if the data is synthetic."""
    if args.data != "synthetic":
        images, labels = torchnet.read_split(args.data, "train")
        return torchnet.normalise(images, model), labels
    image, count = model["input"], 4 * args.batch
    bytes_ = torch.randint(256, (count, image["channels"], image["height"], image["width"])).numpy()
    return torchnet.normalise(bytes_, model), torch.arange(count) % torchnet.classes_of(model)


def best_layout(model, pixels, labels, args):
    """Tries each layout for a few steps; gives the faster peer, warmed up, and milliseconds a step of each."""
    peers, tried = {}, {}
    for layout in LAYOUTS:
        peers[layout] = Peer(model, pixels, labels, layout, args)
        peers[layout].train(args.trial_steps)
        seconds, _ = peers[layout].train(args.trial_steps)
        tried[layout] = 1000 * seconds / args.trial_steps
    return peers[min(tried, key=tried.get)], tried


# --- Convoy -------------------------------------------------------------------------------------------------------


def convoy_command(args, out):
    length = ["--steps", str(args.steps)] if args.steps else ["--epochs", "1"]
    settings = {
        "--model": args.model,
        "--data": args.data,
        "--batch": args.batch,
        "--lr": LEARNING_RATE,
        "--momentum": args.momentum,
        "--weight-decay": args.weight_decay,
        "--schedule": "constant",
        "--seed": args.seed,
        "--workers": args.workers,
        "--threads": args.threads,
        "--out": out,
    }
    return [str(args.binary), "train", *length, *(str(part) for pair in settings.items() for part in pair)]


def run_convoy(args):
    """One job; gives the seconds and images of its training, as it wrote them down."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = convoy_command(args, out)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, cwd=ROOT)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"convoy took longer than --timeout {args.timeout} s: {' '.join(command)}") from late
        if done.returncode != 0:
            raise Failed(f"convoy failed ({done.returncode}): {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
        return read_metrics(out / "metrics.jsonl")


def read_metrics(path):
    """Adds up the epochs' objects: seconds of training, and images."""
    if not path.is_file():
        raise Failed("convoy wrote no metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    epochs = [row for row in rows if "seconds" in row and "images_per_second" in row]
    if not epochs:
        raise Failed("convoy's metrics.jsonl has no epoch with `seconds` and `images_per_second`")
    seconds = sum(row["seconds"] for row in epochs)
    return seconds, sum(row["seconds"] * row["images_per_second"] for row in epochs)


# --- the comparison -----------------------------------------------------------------------------------------------


def compare(args, say):
    """Runs the rounds, A B A B; gives all that was found."""
    model = torchnet.parse_model(torchnet.read_model(args.model))
    pixels, labels = load_data(model, args)
    peer, tried = best_layout(model, pixels, labels, args)
    say(f"PyTorch {torch.__version__}: " + ", ".join(f"{k} {v:.1f} ms/step" for k, v in tried.items()))
    speeds = {"pytorch": [], "convoy": []}
    for turn in range(1, args.rounds + 1):
        for name, run in (("pytorch", lambda: peer.train(args.steps)), ("convoy", lambda: run_convoy(args))):
            seconds, images = run()
            speeds[name].append(images / seconds)
            say(f"round {turn}  {name:8} {images:7.0f} images in {seconds:8.2f} s  {images / seconds:9.1f} images/s")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "model": args.model,
        "batch": args.batch,
        "cores": args.cores,
        "steps": args.steps,
        "pytorch": {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "layout": peer.layout,
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
    parser.add_argument(
        "--data", required=True, help="a folder of IDX files, or 'synthetic' (then --steps is needed)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side gets (%(default)s)")
    parser.add_argument("--steps", type=int, help="so many steps instead of an epoch")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--momentum", type=float, default=0.9, help="(%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="cores for either side, PyTorch's threads (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="Convoy's worker processes (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker (%(default)s)")
    parser.add_argument("--trial-steps", type=int, default=10, help="steps to choose the layout by (%(default)s)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one job may take (%(default)s)")
    parser.add_argument(
        "--binary",
        type=Path,
        default=ROOT / "target" / "release" / "convoy",
        help="the program (target/release/convoy)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and progress to stderr")
    args = parser.parse_args()
    if args.data == "synthetic" and not args.steps:
        parser.error("--data synthetic needs --steps")
    if args.data != "synthetic":
        args.data = str(Path(args.data).resolve())
    if Path(args.model).is_file():
        args.model = str(Path(args.model).resolve())
    for name in ("rounds", "batch", "cores", "workers", "threads", "trial_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} has to be at least 1")
    if args.steps is not None and args.steps < 1:
        parser.error("--steps has to be at least 1")
    args.binary = args.binary.resolve()
    return args


def main():
    args = arguments()
    try:
        if not args.binary.is_file():
            raise Failed(f"there is no {args.binary}: build it with `cargo build --release`, or name it with --binary")
        stay_on(args.cores)
        torch.set_num_threads(args.cores)
        torch.manual_seed(args.seed)
        found = compare(args, lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True))
    except (Failed, OSError, ValueError, KeyError) as problem:
        sys.exit(f"compare_pytorch.py: {problem}")
    if args.json:
        print(json.dumps(found))
        return
    for name in ("pytorch", "convoy"):
        print(f"median   {name:8} {found[name]['median']:9.1f} images/s")
    print(f"ratio    convoy / pytorch, of images a second: {found['ratio']:.3f} (above 1: Convoy is faster)")


if __name__ == "__main__":
    main()
