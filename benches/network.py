"""Measures steps on slow links, and compares step time and bytes per step with the estimate of `convoy plan --link-mbit`. Ends with exit code
1 if one of them differs from the plan by more than 15 %.

    sudo python benches/network.py [--model FILE] [--mbit 100 1000] [--workers 2 4] [--slots 2] [--batch 64] [--steps 8]

The coordinator and each worker run in a network namespace of their own, on a bridge that exists only for this script. Token buckets (tc
tbf) limit each link in both directions. Nothing outside these namespaces is changed, except for the control groups that are named below.
All of this is removed at the end. It needs Linux, root, and the commands `ip` and `tc`.

All processes share the cores of this machine, so the rate of a worker is that of the same run: the operations of its step, divided by the
time in which its trace says that it computes. The estimate therefore shows whether the plan knows the links and the order of work, not
how fast the cores are. With more workers than cores, a control group limits each worker to a share of a core, so that no worker waits for
another one's core. Bytes are those of the interfaces, headers included.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading

# Longer runs have failed, in seconds.
RUN_MAX = 900
# Steps before those that are measured: the first ones wait for images that were not sent ahead.
WARM_UP = 2
WITHIN = 0.15
NEVER = str(2**63)
PORT = 7878
# If there are more workers than cores, all of them together get this share of the cores. The coordinator and the system need the rest.
SHARE_OF_WORKERS = 0.8
# What a worker may compute before it pauses for its share, in microseconds. It is the least that Linux allows.
QUOTA = 1000
# Handing tensors to the network thread is left out: it waits where a link is slow.
COMPUTING = {"layer", "segments", "taking", "committing"}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class Network:
    """A bridge, and a namespace with a limited link for the coordinator and for each worker."""

    def __init__(self, workers, mbit):
        self.mark = f"convoy{os.getpid()}"
        self.hub = f"{self.mark}hub"
        self.ends = [f"{self.mark}n{index}" for index in range(workers + 1)]
        self.mbit = mbit

    def __enter__(self):
        try:
            run("ip", "netns", "add", self.hub)
            run("ip", "-n", self.hub, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self.hub, "link", "set", "bridge", "up")
            for index, end in enumerate(self.ends):
                run("ip", "netns", "add", end)
                run("ip", "-n", end, "link", "set", "lo", "up")
                run("ip", "-n", self.hub, "link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0", "netns", end)
                run("ip", "-n", self.hub, "link", "set", f"port{index}", "master", "bridge", "up")
                run("ip", "-n", end, "address", "add", f"{self.address(index)}/24", "dev", "eth0")
                run("ip", "-n", end, "link", "set", "eth0", "up")
                for namespace, device in ((end, "eth0"), (self.hub, f"port{index}")):
                    limit = ("rate", f"{self.mbit}mbit", "burst", "128kb", "latency", "100ms")
                    run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *limit)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for namespace in (*self.ends, self.hub):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, timeout=60)

    def address(self, index):
        return f"10.99.0.{index + 1}"

    def start(self, index, *command, **options):
        return subprocess.Popen(["ip", "netns", "exec", self.ends[index], *command], text=True, **options)

    def bytes(self, index):
        """Bytes that an end has sent, and that it has received."""
        [link] = json.loads(run("ip", "-n", self.ends[index], "-json", "-stats", "link", "show", "dev", "eth0"))
        return link["stats64"]["tx"]["bytes"], link["stats64"]["rx"]["bytes"]


class Share:
    """A control group that limits its process to a share of a core. A whole core needs no limit, and no group."""

    def __init__(self, name, share):
        root = pathlib.Path("/sys/fs/cgroup")
        # Whether Linux has the first version of control groups.
        self.is_first = (root / "cpu").is_dir()
        self.folder = (root / "cpu" if self.is_first else root) / name if share < 1 else None
        self.period = int(QUOTA / share)

    def __enter__(self):
        if self.folder:
            settings = {"cpu.cfs_period_us": self.period, "cpu.cfs_quota_us": QUOTA} if self.is_first else {"cpu.max": f"{QUOTA} {self.period}"}
            try:
                self.folder.mkdir()
                for file, value in settings.items():
                    (self.folder / file).write_text(str(value))
            except OSError as error:
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
                raise SystemExit(f"more workers than cores need a control group with the cpu controller: {error}") from error
        return self

    def __exit__(self, *_):
        if self.folder:
            self.folder.rmdir()

    def add(self, process):
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(process.pid))


def share_of_each(workers):
    """The share of a core that each worker gets."""
    cores = os.cpu_count() or 1
    return 1 if workers <= cores else SHARE_OF_WORKERS * cores / workers


def measured(arguments, workers, mbit, exchange):
    """The median step in seconds, bytes per step that all ends send, and the account of the trace."""
    with tempfile.TemporaryDirectory() as folder, Network(workers, mbit) as network, contextlib.ExitStack() as stack:
        options = ["--model", arguments.model, "--data", "synthetic", "--batch", str(arguments.batch), "--steps", str(arguments.steps)]
        options += ["--workers", str(workers), "--slots", str(arguments.slots), "--exchange", exchange]
        options += ["--trace", f"steps:{WARM_UP + 1}-{arguments.steps - 1}", "--snapshot-every", NEVER, "--checkpoint-every", NEVER, "--json", "--out", f"{folder}/run"]
        listen = f"{network.address(0)}:{PORT}"
        log = stack.enter_context(open(f"{folder}/log", "w+"))
        job = network.start(0, arguments.convoy, "train", "--listen", listen, *options, stdout=subprocess.PIPE, stderr=log)
        stack.callback(end, job)
        limit = threading.Timer(RUN_MAX, job.kill)
        limit.start()
        stack.callback(limit.cancel)
        for index in range(1, workers + 1):
            share = stack.enter_context(Share(f"{network.mark}w{index}", share_of_each(workers)))
            worker = network.start(index, arguments.convoy, "worker", "--threads", "1", "--join", listen, stderr=subprocess.DEVNULL)
            stack.callback(end, worker)
            share.add(worker)
        steps, counted = [], {}
        for line in job.stdout:
            event = json.loads(line)
            if event["event"] == "step":
                steps.append(event["seconds"])
                if event["step"] in (WARM_UP, arguments.steps - 1):
                    counted[event["step"]] = sum(network.bytes(index)[0] for index in range(workers + 1))
        if job.wait() != 0:
            log.seek(0)
            raise SystemExit(f"the job failed, or took more than {RUN_MAX} s: {log.read()}")
        account = json.loads(run(arguments.convoy, "trace", f"{folder}/run", "--json"))
        bytes_a_step = (counted[arguments.steps - 1] - counted[WARM_UP]) / (arguments.steps - 1 - WARM_UP)
        # The last step sends no images ahead.
        return statistics.median(steps[WARM_UP:-1]), bytes_a_step, account


def end(process):
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def computing(account):
    """Seconds in which each worker computes in a step."""
    return [sum(ns for use, ns in worker["uses"] if use["on"] in COMPUTING) / 1e9 for worker in account["workers"]]


def hidden(account):
    """The share of the time of the sums over replicas during which the receivers computed."""
    shares = [row["hidden_share"] for row in account["exchanges"] if row["exchange"] is None and row["backward"]]
    return f"  sums over replicas: {shares[0]:.0%} hidden" if shares else ""


def planned(arguments, workers, exchange, *more):
    command = [arguments.convoy, "plan", "--json", "--model", arguments.model, "--batch", str(arguments.batch), "--exchange", exchange]
    return json.loads(run(*command, "--workers", str(workers), "--slots", str(arguments.slots), *more))


def compared(arguments, workers, mbit, exchange):
    """Prints a row. Whether the step and its bytes are as planned."""
    seconds, sent, account = measured(arguments, workers, mbit, exchange)
    plan = planned(arguments, workers, exchange)
    layers = plan["layers"]
    operations = 2 * arguments.batch * (3 * plan["multiply_adds"] - layers[0]["multiply_adds"])
    gflops = operations / sum(computing(account)) / 1e9
    estimate = planned(arguments, workers, exchange, "--gflops", f"{gflops:.6}", "--link-mbit", str(mbit))["estimate"]
    [row] = [row for row in estimate["steps"] if row["requested"]]
    bytes_planned = sum(plan["step"].values())
    ratios = [row["step_ms"] / 1e3 / seconds, bytes_planned / sent]
    print(
        f"{mbit:5} Mbit/s  {workers} workers  {exchange:6}  {gflops:6.1f} GFLOP/s each  step: {seconds * 1e3:8.1f} ms measured,"
        f" {row['step_ms']:8.1f} ms planned ({ratios[0]:.2f})  bytes: {sent / 1e6:7.1f} MB measured, {bytes_planned / 1e6:7.1f} MB planned"
        f" ({ratios[1]:.2f}){hidden(account)}",
        flush=True,
    )
    return all(abs(ratio - 1) <= WITHIN for ratio in ratios)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convoy", default="target/release/convoy", help="the program (%(default)s)")
    parser.add_argument("--model", default="alexnet-fashion", help="preset or model file (%(default)s)")
    parser.add_argument("--mbit", type=int, nargs="+", default=[100, 1000], help="Mbit/s of each link (100 and 1000)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="numbers of workers (2 and 4)")
    parser.add_argument("--slots", type=int, default=2, help="slots per batch (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps per run (%(default)s)")
    parser.add_argument("--exchange", nargs="+", default=["direct"], choices=["direct", "relay"], help="direct, relay or both (direct)")
    arguments = parser.parse_args()
    if arguments.steps < WARM_UP + 3:
        parser.error(f"--steps {arguments.steps}: must be at least {WARM_UP + 3}")
    arguments.convoy = os.path.abspath(arguments.convoy)
    if os.path.exists(arguments.model):
        arguments.model = os.path.abspath(arguments.model)
    cases = [(workers, mbit, exchange) for mbit in arguments.mbit for workers in arguments.workers for exchange in arguments.exchange]
    sys.exit(0 if all([compared(arguments, *case) for case in cases]) else 1)


main()
