"""Measures the cost of the default trace: jobs with the trace and with `--trace off`, alternating, with the order swapped in
every second pair. Prints the mean step of each pair, the median of the differences, and its 95 % interval.

    python benches/trace_cost.py [--convoy target/release/convoy] [--pairs 24] [--steps 474]

Two identical runs differ by 1 or 2 % on an idle machine, and by 10 % on a busy one. The interval shows this.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile

WARM_UP = 5


def mean_step(convoy, steps, options):
    """Milliseconds, without the first steps of the run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [convoy, "train", "--data", "bundled", "--steps", str(steps), "--json", "--out", f"{folder}/run"]
        output = subprocess.run(command + options, capture_output=True, text=True, check=True).stdout
    events = map(json.loads, output.splitlines())
    took = [event["seconds"] * 1e3 for event in events if event["event"] == "step"]
    return statistics.mean(took[WARM_UP:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--convoy", default="target/release/convoy", help="the program (%(default)s)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of runs (%(default)s)")
    parser.add_argument("--steps", type=int, default=474, help="steps per run (%(default)s)")
    arguments = parser.parse_args()
    ways = {"off": ["--trace", "off"], "default": []}
    shares = []
    for pair in range(arguments.pairs):
        order = sorted(ways, reverse=pair % 2 == 0)
        took = {way: mean_step(arguments.convoy, arguments.steps, ways[way]) for way in order}
        shares.append((took["default"] / took["off"] - 1) * 100)
        print(f"{took['default']:.3f} ms with the default trace, {took['off']:.3f} ms without: {shares[-1]:+.2f} %", flush=True)
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(shares, k=len(shares))) for _ in range(5000))
    print(f"median {statistics.median(shares):+.2f} %, 95 % interval {medians[125]:+.2f} to {medians[4875]:+.2f} %")


main()
