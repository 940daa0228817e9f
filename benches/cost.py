"""Measures the cost of the default trace, of the default snapshots, or of TLS: jobs with it and without it, in turns, in another order each
time. Prints the time of each pair, the median of the differences, and its 95 % interval.

For TLS, two workers of one thread are connected over TCP on this machine, which also computes what the encryption of both ends takes. Times of
steps differ more than TLS costs on a busy machine, so the last line has the processor time of the threads that send and receive.

For snapshots, a third job of each round takes a snapshot every five steps, far more than the default. This gives the cost of one snapshot.
By default, a job takes a snapshot after sixty times the cost that it has counted for the last one, and at most one every two seconds. The
last line says which share of the time snapshots take at that pace, with the measured cost. Two runs of the same job differ by several
percent on a machine that other programs use, which hides a cost of less than 1 %. The third job takes so many snapshots that their cost is
visible nevertheless.

    python benches/cost.py trace [--pairs 24]
    python benches/cost.py snapshots [--pairs 8] [--model alexnet --data synthetic --batch 64 --steps 60]
    python benches/cost.py tls [--pairs 12] [--model alexnet --data synthetic --batch 128 --steps 12]

Times are wall-clock times, from the end of the first steps to the end of the last step. Checkpoints and measurements are avoided: a run is
shorter than an epoch. Two identical runs differ by 1 or 2 % on an idle machine, and by 10 % on a busy one. The interval shows this.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import tempfile
import time

WARM_UP = 5
NEVER = str(2**63)
OFTEN = 5
# The default pace of snapshots, as in coordinator/src/recovery.rs: training between two of them, in costs of one, and in seconds.
APART, APART_MIN = 60, 2.0
# The job without, and with, what is measured. Nothing else is on.
WAYS = {
    "trace": {"without": ["--snapshot-every", NEVER, "--trace", "off"], "with": ["--snapshot-every", NEVER]},
    "snapshots": {
        "without": ["--trace", "off", "--snapshot-every", NEVER],
        "with": ["--trace", "off"],
        "often": ["--trace", "off", "--snapshot-every", str(OFTEN)],
    },
    "tls": {"without": ["--trace", "off", "--snapshot-every", NEVER], "with": ["--trace", "off", "--snapshot-every", NEVER]},
}


# For TLS: the processor time of each run, in milliseconds per step, of the coordinator and of the threads that send and receive.
SENDING = {"with": [], "without": []}


def spent(process, thread=None):
    """The processor time of a process, or of one of its threads, in seconds."""
    seconds = 0
    for task in pathlib.Path(f"/proc/{process}/task").iterdir():
        name, fields = (task / "stat").read_text().rsplit(")", 1)
        if thread is None or name.endswith(f"({thread}"):
            seconds += sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds


def credentials(folder, name):
    return ["--tls-ca", f"{folder}/ca.pem", "--tls-cert", f"{folder}/{name}.pem", "--tls-key", f"{folder}/{name}-key.pem"]


@contextlib.contextmanager
def workers(arguments, folder, with_tls):
    """Two workers over TCP. What the coordinator needs to wait for them."""
    subprocess.run([arguments.convoy, "certs", folder], check=True, stdout=subprocess.DEVNULL)
    secrets = (lambda name: credentials(folder, name)) if with_tls else (lambda name: [])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "127.0.0.1:%d" % listener.getsockname()[1]
    join = [arguments.convoy, "worker", "--threads", "1", "--join", address]
    started = [subprocess.Popen([*join, *secrets(f"worker-{number}")], stderr=subprocess.DEVNULL) for number in (1, 2)]
    try:
        yield ["--listen", address, *secrets("coordinator")], started
    finally:
        for process in started:
            process.terminate()
            process.wait()


def measured(arguments, way):
    """The seconds from the end of the first steps to the end of the last one, and those that the job counted for each snapshot meanwhile."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command = [arguments.convoy, "train", "--json", "--checkpoint-every", NEVER, "--out", f"{folder}/run", *WAYS[arguments.of][way]]
        processes = []
        if arguments.of == "tls":
            flags, processes = stack.enter_context(workers(arguments, f"{folder}/certs", way == "with"))
            command += flags
        for name in ("model", "data", "batch", "steps"):
            command += [f"--{name}", str(getattr(arguments, name))]
        began = ended = None
        snapshots, sending = [], []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "step":
                    ended = time.monotonic()
                    began = ended if event["step"] == WARM_UP else began
                    if processes and event["step"] in (WARM_UP, arguments.steps - 1):
                        sending.append(1e3 * (spent(process.pid) + sum(spent(worker.pid, "network") for worker in processes)))
                elif event["event"] == "snapshot" and WARM_UP <= event["step"] < arguments.steps:
                    snapshots.append(event["seconds"])
        if process.returncode != 0:
            raise SystemExit(f"it failed ({process.returncode}): {' '.join(command)}")
        if sending:
            SENDING[way].append((sending[1] - sending[0]) / (arguments.steps - 1 - WARM_UP))
        return ended - began, snapshots


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
    ways = WAYS[arguments.of]
    shares, counts, costs, by_pace, seconds_without = [], [], [], [], []
    for pair in range(arguments.pairs):
        first = pair % len(ways)
        order = [*list(ways)[first:], *list(ways)[:first]]
        took = {way: measured(arguments, way) for way in order}
        (with_it, taken), (without, _) = took["with"], took["without"]
        seconds_without.append(without)
        shares.append((with_it / without - 1) * 100)
        line = f"{with_it:.3f} s with {arguments.of}, {without:.3f} s without: {shares[-1]:+.2f} %"
        if "often" in took:
            seconds, counted = took["often"]
            if not counted:
                raise SystemExit(f"a run took no snapshot: use more than {WARM_UP + OFTEN} --steps")
            counts.append(len(taken))
            costs.append((seconds - without) / len(counted))
            by_pace.append(100 * costs[-1] / max(APART * statistics.fmean(counted), APART_MIN))
            line += f"; {seconds:.3f} s with {len(counted)} snapshots: {costs[-1] * 1e3:+.1f} ms each, "
            line += f"{statistics.fmean(counted) * 1e3:.1f} ms by the job's own count"
        print(line, flush=True)
    print(f"pairs: {interval(shares)}")
    if SENDING["with"]:
        means = {way: statistics.fmean(times) for way, times in SENDING.items()}
        added = means["with"] - means["without"]
        step = statistics.median(seconds_without) / (arguments.steps - WARM_UP) * 1e3
        line = f"sending and receiving take {means['with']:.2f} ms of processor time per step with TLS, {means['without']:.2f} ms without: "
        print(line + f"{added:+.2f} ms, {100 * added / step / os.cpu_count():.1f} % of all cores")
    if by_pace:
        print(f"one snapshot costs {statistics.median(costs) * 1e3:.1f} ms; the default took {statistics.median(counts):.0f} per run")
        print(f"at the default pace, they cost {interval(by_pace)}")


main()
