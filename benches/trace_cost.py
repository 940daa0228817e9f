"""What a kept step costs, within one run: each against its own neighbours, so that a machine whose speed wanders from minute
to minute doesn't matter. Prints the median, its 95 % interval, and what that makes of a job that keeps every fifth step.

    python benches/trace_cost.py [--convoy target/release/convoy] [--rounds 6]

What is recorded and forgotten, in steps that aren't kept, is not in it.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile

STEPS, EPOCH, APART = 250, 79, 5


def rounds(convoy, count):
    """Excess of kept steps and of those after them, in which they are written; and the neighbours' mean. Milliseconds."""
    excess, usual = [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            command = [convoy, "train", "--data", "bundled", "--steps", str(STEPS), "--json", "--out", f"{folder}/run"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            trace = json.load(open(f"{folder}/run/trace.json"))
        events = map(json.loads, output.splitlines())
        took = {e["step"]: e["seconds"] * 1e3 for e in events if e["event"] == "step"}
        kept = {e["args"]["step"] for e in trace["traceEvents"] if e.get("cat") == "step"}
        for step in sorted(kept):
            near = [s for s in (step - 2, step - 1, step + 2, step + 3) if not {s, s - 1} & kept]
            is_plain = step > 10 and step + 3 <= STEPS and all(s % EPOCH > 3 for s in (step - 2, step, step + 3))
            if is_plain and step + 1 not in kept and step - 1 not in kept and near:
                mean = statistics.mean(took[s] for s in near)
                excess.append(took[step] + took[step + 1] - 2 * mean)
                usual.append(mean)
    return excess, usual


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--convoy", default="target/release/convoy")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    excess, usual = rounds(arguments.convoy, arguments.rounds)
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(excess, k=len(excess))) for _ in range(5000))
    median, low, high = statistics.median(excess), medians[125], medians[4875]
    step = statistics.median(usual)
    print(f"{len(excess)} kept steps cost {median:.2f} ms each ({low:.2f} to {high:.2f}) beside steps of {step:.2f} ms")
    share = [value / step / APART * 100 for value in (median, low, high)]
    print("a job that keeps every fifth step is {:.2f} % longer ({:.2f} to {:.2f})".format(*share))


main()
