"""How much faster two workers compute the runs of a study than one: steps per second of the whole queue, in windows of time that take turns.

    python benches/queue.py [--pairs 11] [--study quick] [--seconds 20]
    python benches/queue.py --own

Each window has a new study that listens at one address more than there are workers, and workers of one thread that join it on this machine.
With `--own`, the study starts its workers itself. A window begins when each worker has done a step, and ends before the study. All that the
queue does meanwhile counts: training, measurements, checkpoints, and the change from one run to the next.

Prints each pair of windows with the cores that were busy, and then the geometric mean of the ratios with its 95 % interval, by resampling.
The speed of a shared machine changes within seconds, by more than what is measured here. The interval shows this.
"""

import argparse
import contextlib
import math
import os
import pathlib
import random
import socket
import statistics
import subprocess
import tempfile
import time

# Seconds within which each worker must have done its first step.
START_MAX = 60


def free_addresses(count):
    """Addresses of this machine where nobody listens."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return ",".join("127.0.0.1:%d" % listener.getsockname()[1] for listener in listeners)


@contextlib.contextmanager
def running(command):
    """A process, which is ended at last."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def steps(folder):
    """Steps that each run has done."""
    return [file.read_text().count('"lr"') for file in folder.glob("runs/*/*/metrics.jsonl")]


def await_steps(folder, workers, study):
    """Waits until each worker has done a step."""
    latest = time.monotonic() + START_MAX
    while sum(done > 0 for done in steps(folder)) < workers:
        if study.poll() is not None:
            raise SystemExit(f"the study ended before its first steps ({study.returncode}): {study.stderr.read().strip()}")
        if time.monotonic() > latest:
            raise SystemExit(f"within {START_MAX} s, {workers} runs have not begun")
        time.sleep(0.05)


def busy_seconds():
    """Processor time of all cores since the machine started, in seconds."""
    user, nice, system, _, _, interrupts, soft, *_ = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def window(options, workers):
    """Steps per second, and busy cores, with so many workers."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "study"
        command = [options.convoy, "study", options.study, "--out", folder]
        joined = []
        if options.own:
            command += ["--at-once", workers, "--threads", 1]
        else:
            at = free_addresses(workers + 1)
            command += ["--listen", at]
            for _ in range(workers):
                joined.append(stack.enter_context(running([options.convoy, "worker", "--join", at, "--threads", 1])))
        study = stack.enter_context(running(command))
        await_steps(folder, workers, study)
        done, busy, began = sum(steps(folder)), busy_seconds(), time.monotonic()
        time.sleep(options.seconds)
        done, busy, took = sum(steps(folder)) - done, busy_seconds() - busy, time.monotonic() - began
        if study.poll() is not None:
            raise SystemExit(f"the study ended within its window ({study.returncode}): {study.stderr.read().strip() or 'use fewer --seconds'}")
        for worker in joined:
            if worker.poll() is not None:
                raise SystemExit(f"a worker ended within the window ({worker.returncode}): {worker.stderr.read().strip()}")
        if done == 0:
            raise SystemExit(f"no run did a step within {options.seconds} s; use more --seconds")
        return done / took, busy / took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convoy", default="target/release/convoy", help="the program (%(default)s)")
    parser.add_argument("--study", default="quick", help="a study of many runs, as convoy study takes it (%(default)s)")
    parser.add_argument("--pairs", type=int, default=11, help="pairs of windows (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="length of a window (%(default)s)")
    parser.add_argument("--own", action="store_true", help="the study starts its workers")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error(f"--pairs is {options.pairs}; must be at least 1")
    logarithms = []
    for pair in range(options.pairs):
        counts = (1, 2) if pair % 2 == 0 else (2, 1)
        found = {workers: window(options, workers) for workers in counts}
        (one, one_busy), (two, two_busy) = found[1], found[2]
        logarithms.append(math.log(two / one))
        print(f"one worker {one:.1f} steps/s ({one_busy:.2f} cores), two {two:.1f} ({two_busy:.2f} cores): {two / one:.3f} times", flush=True)
    chance = random.Random(1)
    means = sorted(math.exp(statistics.fmean(chance.choices(logarithms, k=len(logarithms)))) for _ in range(5000))
    mean = math.exp(statistics.fmean(logarithms))
    print(f"two workers are {mean:.3f} times as fast as one, 95 % interval {means[125]:.3f} to {means[4875]:.3f}")


main()
