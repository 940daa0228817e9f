"""Measures how soon a job trains again after a worker is killed, and how soon a stopped worker is suspected. Prints the median and the
largest of some rounds beside the limits that docs/RELIABILITY.md states, and ends with exit code 1 if one is exceeded.

    python benches/recovery.py [--rounds 5] [--models alexnet-fashion alexnet]

Times are in milliseconds. "found" is measured here, from the signal to the event on the coordinator's standard output. "training again" is
the time until it was found, plus the incident's own times to replace the worker and to restore the weights. The replay of lost steps is
not part of it: it depends on the interval of snapshots.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# Of each model: images, images per step, and the step after which the fault happens.
JOBS = {"alexnet-fashion": ("bundled", 64, 12), "alexnet": ("synthetic", 32, 3)}
NEVER = str(2**63)
# A round that takes longer has failed, in seconds.
ROUND_MAX = 120
FOUND_MAX, SUSPECTED_MAX = 200, 2500
# Training again, at most: with a worker process that is started again, and with a spare.
AGAIN_MAX = {"alexnet-fashion": (1000, 500), "alexnet": (3000, 2000)}


class Job:
    """A coordinator whose events are read as they come, and its remote workers, if it has any."""

    def __init__(self, convoy, model, with_spare, folder):
        data, batch, self.fault_after = JOBS[model]
        command = [convoy, "train", "--json", "--model", model, "--data", data, "--batch", str(batch), "--steps", "100000"]
        command += ["--schedule", "constant", "--lr", "0.001", "--trace", "off", "--checkpoint-every", NEVER, "--out", f"{folder}/run"]
        self.workers, self.started = [], None
        if with_spare:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            command += ["--listen", address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if with_spare:
            worker = [convoy, "worker", "--threads", "1", "--join", address]
            self.workers = [subprocess.Popen(worker, stderr=subprocess.PIPE, text=True) for _ in range(2)]
            self.started, _ = self.wait_for("started")
            self.workers.append(subprocess.Popen(worker, stderr=subprocess.PIPE, text=True))
            for line in self.workers[-1].stderr:
                if "this worker is a spare" in line:
                    break

    def wait_for(self, name, is_it=lambda event: True):
        """The next event of this name, and when it came, in seconds."""
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == name and is_it(event):
                return event, time.monotonic()
        raise SystemExit(f"the job ended before the event {name}")

    def begin(self):
        """Waits until the job trains. Returns the process of worker 1."""
        if self.started is None:
            self.started, _ = self.wait_for("started")
        self.wait_for("step", lambda event: event["step"] >= self.fault_after)
        return self.started["workers"][1]["process_id"]

    def end(self):
        for process in [self.process, *self.workers]:
            process.kill()
            process.wait()


@contextlib.contextmanager
def struck(convoy, model, with_spare, number):
    """A job whose worker 1 has just got a signal: the job, the worker's process, and when, in seconds."""
    signal.alarm(ROUND_MAX)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(convoy, model, with_spare, folder)
        try:
            process = job.begin()
            began = time.monotonic()
            os.kill(process, number)
            yield job, process, began
        finally:
            job.end()


def killed(convoy, model, with_spare):
    """Milliseconds until the kill was found, and until the job trained again."""
    with struck(convoy, model, with_spare, signal.SIGKILL) as (job, _, began):
        _, at = job.wait_for("fault")
        incident, _ = job.wait_for("recovered")
        found = (at - began) * 1e3
        return found, found + incident["replace_ms"] + incident["restore_ms"]


def stopped(convoy, model):
    """Milliseconds until the worker was suspected."""
    with struck(convoy, model, False, signal.SIGSTOP) as (job, process, began):
        try:
            _, at = job.wait_for("suspected")
        finally:
            os.kill(process, signal.SIGCONT)
        job.wait_for("answered")
        return (at - began) * 1e3


def too_late(*_):
    raise SystemExit(f"a round took more than {ROUND_MAX} s")


def main():
    signal.signal(signal.SIGALRM, too_late)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convoy", default="target/release/convoy", help="the program (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=JOBS, default=list(JOBS), help="presets (%(default)s)")
    arguments = parser.parse_args()
    rounds, exceeded = range(arguments.rounds), False
    print(f"{'ms, of ' + str(arguments.rounds) + ' rounds':74}{'median':>8}{'max':>8}{'limit':>8}")
    for model in arguments.models:
        again, with_spare = AGAIN_MAX[model]
        started_again = [killed(arguments.convoy, model, False) for _ in rounds]
        spare = [killed(arguments.convoy, model, True) for _ in rounds]
        rows = [
            ("killed, found", [found for found, _ in started_again + spare], FOUND_MAX),
            ("killed, training again with a worker that is started", [total for _, total in started_again], again),
            ("killed, training again with a spare", [total for _, total in spare], with_spare),
            ("stopped, suspected", [stopped(arguments.convoy, model) for _ in rounds], SUSPECTED_MAX),
        ]
        for what, values, limit in rows:
            print(f"{model + ': ' + what:74}{statistics.median(values):8.0f}{max(values):8.0f}{limit:8}", flush=True)
            exceeded |= max(values) > limit
    sys.exit(int(exceeded))


if __name__ == "__main__":
    main()
