"""Conversations of a hostile coordinator with a real worker, which must leave each time, say why, and come again. The server is that of gRPC's
C core with its default settings, which closes connections of clients that ping too often.

    as_coordinator.py CONVOY
"""

import concurrent.futures
import os
import pathlib
import queue
import struct
import sys
import threading
import time

import grpc

from peer import HOSTILE, SOON, Program, chunk, free_address, messages, services

MODEL = """name = "tiny"
towers = 1
input = { channels = 1, height = 2, width = 2, mean = [0.5], std = [0.5] }
[[layer]]
kind = "linear"
name = "fc"
units = 2
"""
JOB, GENERATION, MANY, LATE_STEP = 5, 1, 2**32 - 1, 2**63
SHAPES = {"fc.weight": (2, 4), "fc.bias": (2,)}
MEGABYTES_MAX = 200
"""The most memory that the worker may have used at the end."""
To = messages.ToWorker


def assign(generation=GENERATION, **changes):
    values = dict(job=JOB, model=MODEL, towers=1, trunk=[0], head=[0], worker=0, seed=1, dropout_seed=1, momentum=0.9, weight_decay=0.0)
    values |= dict(batch=8, images=64, slots=2, micro_batches=2, train=True, trace=True)
    return To(generation=generation, assign=messages.Assign(**{**values, **changes}))


def commit(step=1, rate=0.1):
    return To(generation=GENERATION, commit=messages.Commit(step=step, rate=rate))


def send_state(step=0):
    return To(generation=GENERATION, send_state=messages.SendState(step=step))


def tensor(payload=b"\0\0\0\0", shape=(1,), **fields):
    return chunk(JOB, GENERATION, payload, shape, **fields)


def parameter(name="fc.weight", shape=(2, 4), step=0, state=1, **changes):
    payload = struct.pack("<f", 0.0) * (shape[0] * (shape[1] if len(shape) > 1 else 1))
    return tensor(payload, shape, parameter=messages.Parameter(**{**dict(step=step, name=name, tower=0, state=state), **changes}))


def weights():
    """All that the worker waits for. It is ready then."""
    return [parameter(name, shape, state=state) for name, shape in SHAPES.items() for state in (1, 2)]


def images(step=1, slot=0, micro_batch=0, first_sample=0, samples=2, phase=1):
    micro = messages.MicroBatch(step=step, phase=phase, slot=slot, micro_batch=micro_batch, first_sample=first_sample, samples=samples)
    return tensor(bytes(4 * samples), (samples, 1, 2, 2), images=messages.Images(micro_batch=micro))


def logits(direction=2, to_tower=0, exchange=0, from_tower=0, step=1, samples=2):
    micro = messages.MicroBatch(step=step, phase=1, samples=samples)
    fields = dict(micro_batch=micro, exchange=exchange, direction=direction, from_tower=from_tower, to_tower=to_tower)
    return tensor(bytes(16), (2, 1, 1, 2), activations=messages.Activations(**fields))


def gradient(**changes):
    return tensor(gradient=messages.Gradient(**{**dict(step=1, name="fc"), **changes}))


def words_before_a_job():
    """Orders after the welcome."""
    yield To(), 'the message lacks "message"'
    yield To(welcome=messages.Welcome(session=3)), "unexpected message from the coordinator: Welcome; expected Assign"
    yield To(welcome=messages.Welcome()), 'the message lacks "session"'
    yield commit(), "unexpected message from the coordinator: Commit; expected Assign"
    yield commit(step=0), 'the message lacks "step"'
    yield commit(step=LATE_STEP), 'the message\'s "step" is'
    yield send_state(), "unexpected message from the coordinator: SendState; expected Assign"
    yield send_state(step=LATE_STEP), 'the message\'s "step" is'
    yield assign(generation=0), 'the message lacks "generation"'


def bad_jobs():
    """Assignments, and what the worker says of them."""
    slots, workers = dict(slots=8, batch=8, micro_batches=1), list(range(300_000))
    for changes, text in [
        (dict(job=0), 'lacks "job"'),
        (dict(model="not TOML"), "cannot read the job's model"),
        (dict(model=HOSTILE), "cannot read the job's model"),
        (dict(model=""), "cannot read the job's model"),
        (dict(model=MODEL.replace("fc", "f" * 5000)), "cannot read the job's model"),
        (dict(model=MODEL.replace("units = 2", "units = 4000000000")), "cannot read the job's model"),
        (dict(model=MODEL.replace("height = 2, width = 2", "height = 30000, width = 30000")), "the job needs at least"),
        (dict(towers=0), 'lacks "towers"'),
        (dict(towers=MANY), '"trunk" is a list of 1'),
        (dict(towers=3, trunk=[0, 0]), '"trunk" is a list of 2'),
        (dict(trunk=[]), "does not fit the model"),
        (dict(trunk=[7]), "does not fit the model"),
        (dict(trunk=[MANY]), "does not fit the model"),
        (dict(trunk=[MANY] * 1000), "does not fit the model"),
        (dict(trunk=workers, **slots), "does not fit the model"),
        (dict(trunk=workers, towers=300_000, head=workers), "does not fit the model"),
        (dict(trunk=workers, towers=600, **slots), "does not fit the model"),
        (dict(trunk=[0] * 300_000, **slots), "does not fit the model"),
        (dict(head=[]), "does not fit the model"),
        (dict(head=workers), "does not fit the model"),
        (dict(head=[0, 0]), "does not fit the model"),
        (dict(worker=9), "made this process worker 9"),
        (dict(worker=MANY), "made this process worker"),
        (dict(momentum=float("nan")), '"momentum" is NaN'),
        (dict(momentum=float("inf")), '"momentum" is inf'),
        (dict(momentum=-1.0), '"momentum" is -1'),
        (dict(weight_decay=float("nan")), '"weight_decay" is NaN'),
        (dict(batch=0), '"slots" is 2; it must be at most "batch"'),
        (dict(batch=MANY), '"batch" is 4294967295'),
        (dict(images=0), 'lacks "images"'),
        (dict(images=LATE_STEP), '"images" is'),
        (dict(slots=0), 'lacks "slots"'),
        (dict(slots=9), '"slots" is 9; it must be at most "batch"'),
        (dict(slots=MANY), '"slots" is 4294967295'),
        (dict(micro_batches=0), 'lacks "micro_batches"'),
        (dict(micro_batches=5), '"micro_batches" is 5; it must be at most'),
        (dict(micro_batches=1_000_000), '"micro_batches" is 1000000; it must be at most'),
        (dict(peers=[messages.Peer()]), "the message's"),
        (dict(peers=[messages.Peer(worker=1, address=HOSTILE, secret=bytes(32))]), '"address" is'),
        (dict(peers=[messages.Peer(worker=1, address="127.0.0.1:1", secret=bytes(31))]), "31 bytes"),
    ]:
        yield assign(**changes), text


def words_within_a_job():
    """Orders after the assignment, before any weights."""
    yield commit(), "the coordinator sent Commit before all weights"
    yield commit(step=2), "the coordinator sent Commit before all weights"
    yield send_state(), "the coordinator sent SendState before all weights"
    expected = "expected Commit, SendState, Ping, EndJob or the Assign of a later generation"
    yield assign(), f"unexpected message from the coordinator: Assign; {expected}"
    yield To(generation=1, welcome=messages.Welcome(session=3)), f"unexpected message from the coordinator: Welcome; {expected}"
    yield To(generation=1, standby=messages.Standby()), f"unexpected message from the coordinator: Standby; {expected}"
    yield assign(generation=2, model=HOSTILE), "cannot read the job's model"
    yield To(generation=1, end_job=messages.EndJob(reason=HOSTILE)), "the job is over"


def frames_within_a_job():
    """Tensors after the assignment."""
    yield messages.Frame(), 'lacks "chunk"'
    yield messages.Frame(open=5), 'lacks "chunk"'
    yield tensor(), 'lacks "tensor"'
    yield chunk(0, 1, images=images().chunk.images), 'lacks "job"'
    yield chunk(JOB, 0, images=images().chunk.images), 'lacks "generation"'
    yield tensor(b"", images=images().chunk.images), '"data" is 0 bytes'
    yield tensor(bytes(300_000), images=images().chunk.images), '"data" is 300000 bytes'
    yield tensor(crc32c=1, images=images().chunk.images), "has checksum"
    yield tensor(shape=(1,) * 1000, images=images().chunk.images), '"shape" is a list of 1000'
    yield tensor(shape=(MANY,) * 8, images=images().chunk.images), "has shape"
    yield images(step=LATE_STEP), '"step" is'
    yield images(samples=0), 'lacks "samples"'
    yield images(samples=8), '"samples" is 8'
    yield images(phase=0), 'lacks "phase"'
    yield images(), "some weights have not arrived"
    yield images(step=0, phase=2), "some weights have not arrived"
    yield logits(), "some weights have not arrived"
    yield logits(direction=0), 'lacks "direction"'
    yield logits(direction=1), '"to_tower" is 0'
    yield logits(exchange=MANY), '"exchange" is'
    yield logits(from_tower=MANY), '"from_tower" is'
    yield logits(to_tower=MANY), '"to_tower" is'
    yield parameter(name=HOSTILE), '"name" is'
    yield parameter(name="fc7.weight"), '"name" is fc7.weight'
    yield parameter(tower=MANY), '"tower" is'
    yield parameter(state=0), 'lacks "state"'
    yield parameter(step=LATE_STEP), '"step" is'
    yield parameter(shape=(4, 2)), "has shape [4, 2]; the plan requires [2, 4]"
    yield gradient(), '"name" is fc'
    yield gradient(name=HOSTILE), '"name" is'
    yield gradient(step=0), 'lacks "step"'


def frames_after_the_weights():
    """Tensors and orders to a worker that is ready."""
    yield [parameter()], [], "it arrived before"
    yield [images(), images()], [], "it arrived before"
    yield [images(step=2), images(step=2)], [], "it arrived before"
    yield [images(first_sample=1)], [], "the step has no such micro-batch"
    yield [images(slot=7)], [], "the step has no such micro-batch"
    yield [images(micro_batch=7)], [], "the step has no such micro-batch"
    yield [images(step=9)], [], "it does not belong to the current step"
    yield [], [commit()], "before all its gradients were complete"
    yield [], [commit(step=5)], "the coordinator committed step 5; the next step is 1"
    yield [], [send_state(step=3)], "requested the weights of step 3; the last commit was step 0"


def mixed_weights():
    return [parameter(step=3), parameter("fc.bias", (2,), step=4)], [], "the weights that arrived before are of another step"


class Conversation:
    """What the impostor says to one visit, and what the worker must say of it."""

    def __init__(self, text, words=(), frames=(), later=(), status=None, hold=0.0, welcome=True):
        self.text, self.words, self.frames, self.later = text, list(words), list(frames), list(later)
        self.status, self.hold, self.welcome = status, hold, welcome


def conversations():
    for word, text in words_before_a_job():
        yield Conversation(text, [word])
    for word, text in bad_jobs():
        yield Conversation(text, [word])
    for word, text in words_within_a_job():
        yield Conversation(text, [assign(), word])
    for frame, text in frames_within_a_job():
        yield Conversation(text, [assign()], [frame])
    for frames, later, text in [*frames_after_the_weights(), mixed_weights()]:
        frames = frames if text == mixed_weights()[2] else weights() + frames
        yield Conversation(text, [assign()], frames, later)
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.PERMISSION_DENIED):
        yield Conversation(None, status=(code, HOSTILE[:1000]))
    yield Conversation("unexpected message from the coordinator: Assign; expected Welcome", [assign()], welcome=False)
    # For five seconds, nothing is said. A client that pings would have been told by now that it pings too often.
    end = To(end_job=messages.EndJob(reason="enough"))
    yield Conversation(None, [To(standby=messages.Standby())], later=[end], hold=5.0)
    yield Conversation("refuses this worker", status=(grpc.StatusCode.FAILED_PRECONDITION, HOSTILE[:1000]))


class Impostor(services.CoordinatorServicer):
    """Answers each visit with the next conversation."""

    def __init__(self):
        self.all, self.ended = list(conversations()), queue.Queue()
        self.at, self.ready = -1, threading.Event()

    def Control(self, requests, context):
        self.at, self.ready = self.at + 1, threading.Event()
        current, answers = self.all[min(self.at, len(self.all) - 1)], queue.Queue()
        if current.status:
            self.ended.put((current, "", 0.0))
            context.abort(*current.status)
        threading.Thread(target=self.listen, args=(current, requests, answers), daemon=True).start()
        if current.welcome:
            yield To(welcome=messages.Welcome(session=9))
        yield from current.words
        if current.hold or not current.frames:
            time.sleep(current.hold)
            yield from current.later
        yield from iter(answers.get, None)

    def listen(self, current, requests, answers):
        """Notes what the worker says at last, and lets it go after a failure."""
        last, began = "", time.monotonic()
        try:
            for said in requests:
                if said.WhichOneof("message") == "ready":
                    for word in current.later:
                        answers.put(word)
                if said.WhichOneof("message") == "failure":
                    last = said.failure.message
                    answers.put(To(generation=said.generation, end_job=messages.EndJob(reason="it failed")))
                # The coordinator closes the connection of a worker that has said its last.
                if said.WhichOneof("message") in ("failure", "finished"):
                    answers.put(None)
        except grpc.RpcError:
            pass
        self.ended.put((current, last, time.monotonic() - began))
        answers.put(None)

    def Tensors(self, requests, context):
        # A worker sends nothing before it has these headers. The library would send them with the first frame.
        context.send_initial_metadata(())
        next(requests)
        yield from self.all[min(self.at, len(self.all) - 1)].frames
        for _ in requests:
            pass

    def Elsewhere(self, request, context):
        return messages.ElsewhereAnswer(wanted=False)


def main():
    address, impostor = free_address(), Impostor()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=64))
    services.add_CoordinatorServicer_to_server(impostor, server)
    server.add_insecure_port(address)
    server.start()
    os.environ["RUST_LOG"] = "info"
    worker = Program(sys.argv[1], "worker", "--join", address, "--threads", 1)
    try:
        seen = 0
        for number in range(len(impostor.all)):
            current, last, seconds = impostor.ended.get(timeout=SOON)
            if current.text and current.text not in last:
                # The last conversation's reason is the first one that it logs after that.
                worker.wait_for(current.text, seen)
            seen = len(worker.lines)
            assert len(last) <= 1000 and "\x1b" not in last, last
            assert seconds < 5 or current.hold, f"the worker took {seconds} s to say {current.text}"
            assert seconds >= current.hold, f"the worker left after {seconds} s of silence: {worker.lines[-3:]}"
            if number + 1 < len(impostor.all):
                status = pathlib.Path(f"/proc/{worker.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak < MEGABYTES_MAX, f"the worker used {peak} MB"
        assert worker.finish() == 1, worker.lines[-5:]
    finally:
        worker.end()
        server.stop(None)
    print(f"{len(impostor.all)} conversations, {peak:.0f} MB")


if __name__ == "__main__":
    main()
