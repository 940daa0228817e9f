"""Measures the cost of the default trace or of the default snapshots: jobs with it and without it, alternating, with the order swapped
in every second pair. Prints the time of each pair, the median of the differences, and its 95 % interval.

For snapshots, it also compares steps within each run: by how much the steps after a snapshot are longer than the other steps of the run,
as a share of the run. Two runs of the same job can differ by a fifth on a machine that other programs use. Two parts of a run differ
less, so that this figure needs fewer runs.

    python benches/cost.py trace [--pairs 24]
    python benches/cost.py snapshots [--pairs 8] [--model alexnet --data synthetic --batch 64 --steps 150]

The time is that of the clock on the wall, from the end of the first steps to the end of the last step. Checkpoints and measurements are
avoided: a run is shorter than an epoch. Two identical runs differ by 1 or 2 % on an idle machine, and by 10 % on a busy one. The interval
shows this.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time

WARM_UP = 5
# A snapshot is sent during this many steps after it.
AFTER = 3
NEVER = str(2**63)
# The job without, and with, what is measured. Nothing else is on.
WAYS = {
    "trace": {"without": ["--snapshot-every", NEVER, "--trace", "off"], "with": ["--snapshot-every", NEVER]},
    "snapshots": {"without": ["--trace", "off", "--snapshot-every", NEVER], "with": ["--trace", "off"]},
}


def measured(arguments, options):
    """The time of each step after the first steps, by its number, and the snapshots that were taken: their steps, and how long each took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.convoy, "train", "--json", "--checkpoint-every", NEVER, "--out", f"{folder}/run", *options]
        for name in ("model", "data", "batch", "steps"):
            command += [f"--{name}", str(getattr(arguments, name))]
        ended, steps, snapshots = None, {}, []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "step":
                    now = time.monotonic()
                    if event["step"] > WARM_UP:
                        steps[event["step"]] = now - ended
                    ended = now
                elif event["event"] == "snapshot" and event["step"] > WARM_UP and event["step"] < arguments.steps:
                    snapshots.append((event["step"], event["seconds"]))
        if process.returncode != 0:
            raise SystemExit(f"it failed ({process.returncode}): {' '.join(command)}")
        return steps, snapshots


def within(steps, snapshots):
    """By how much the steps after snapshots are longer than the others in the mean, as a share of the run in percent."""
    after = {step + more for step, _ in snapshots for more in range(1, AFTER + 1)} & steps.keys()
    others = [seconds for step, seconds in steps.items() if step not in after]
    if not after or not others:
        raise SystemExit("a run had no snapshot, or nothing else: use more --steps")
    longer = sum(steps[step] for step in after) - len(after) * statistics.mean(others)
    return 100 * longer / sum(steps.values())


def interval(shares):
    """The median and its 95 % interval, by resampling, as text."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(shares, k=len(shares))) for _ in range(5000))
    return f"median {statistics.median(shares):+.2f} %, 95 % interval {medians[125]:+.2f} to {medians[4875]:+.2f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", choices=WAYS, help="what is measured")
    parser.add_argument("--convoy", default="target/release/convoy", help="the program (%(default)s)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of runs (%(default)s)")
    parser.add_argument("--model", default="alexnet-fashion", help="preset or model file (%(default)s)")
    parser.add_argument("--data", default="synthetic", help="as convoy train takes it (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (%(default)s)")
    parser.add_argument("--steps", type=int, default=474, help="steps per run (%(default)s)")
    arguments = parser.parse_args()
    shares, counts, seconds, withins = [], [], [], []
    for pair in range(arguments.pairs):
        order = sorted(WAYS[arguments.of], reverse=pair % 2 == 0)
        took = {way: measured(arguments, WAYS[arguments.of][way]) for way in order}
        (steps, snapshots), (others, none) = took["with"], took["without"]
        with_it, without = sum(steps.values()), sum(others.values())
        if arguments.of == "snapshots":
            withins.append(within(steps, snapshots))
        shares.append((with_it / without - 1) * 100)
        counts.append(len(snapshots) - len(none))
        seconds += [each for _, each in snapshots]
        inside = f"; within the run {withins[-1]:+.2f} %" if arguments.of == "snapshots" else ""
        print(f"{with_it:.3f} s with {arguments.of}, {without:.3f} s without: {shares[-1]:+.2f} %{inside}", flush=True)
    if arguments.of == "snapshots":
        median = statistics.median(seconds) if seconds else 0
        print(f"{statistics.median(counts)} snapshots per run, of {median * 1e3:.1f} ms each")
        print(f"within a run: {interval(withins)}")
    print(f"pairs:        {interval(shares)}")


main()
