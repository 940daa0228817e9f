"""Conversations of a hostile worker with a real coordinator, before the job and within it. The job must end with the bits of a job that nobody
disturbs, and each conversation must end as its line says.

    as_worker.py CONVOY FOLDER
"""

import pathlib
import sys

import grpc

from peer import HOSTILE, LOCAL, VERSION, Program, Stream, Worker, chunk, free_address, hello, messages, refusal, services

JOB = "train --data bundled --batch 16 --steps 12 --schedule constant".split()
INVALID, VERSIONS = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
From, Frame = messages.FromWorker, messages.Frame
LATE_STEP, MANY = 2**63, 2**32 - 1
FAULTS = 7
"""Conversations within a job, which ends after twenty faults without progress."""


def micro_batch(**changes):
    return messages.MicroBatch(**{**dict(step=1, phase=1, slot=0, micro_batch=0, first_sample=0, samples=8), **changes})


def first_messages():
    """First messages on a control connection, and the refusal of each."""
    no_hello = "a worker's first message must be Hello"
    yield From(), INVALID, 'the message lacks "message"'
    yield From(hello=messages.Hello()), VERSIONS, "the worker has protocol version 0"
    for version in (1, VERSION - 1, VERSION + 1, MANY):
        yield hello(protocol_version=version), VERSIONS, f"the worker has protocol version {version}"
    yield hello(protocol_version=1, convoy_version=HOSTILE), VERSIONS, "use the same version of the program"
    for address in ("x", "host:99999", ":1", "unix:", HOSTILE, "host:1 2"):
        yield hello(exchange_address=address), INVALID, 'the message\'s "exchange_address" is'
    # Before it has proved anything, a connection may send 64 KB.
    yield hello(host="x" * 400_000), grpc.StatusCode.UNAVAILABLE, ""
    yield From(ready=messages.Ready()), INVALID, no_hello
    yield From(backward_done=messages.BackwardDone()), INVALID, 'the message lacks "micro_batch"'
    yield From(backward_done=messages.BackwardDone(micro_batch=micro_batch(phase=0))), INVALID, 'the message lacks "phase"'
    yield From(backward_done=messages.BackwardDone(micro_batch=micro_batch(samples=0))), INVALID, 'the message lacks "samples"'
    yield From(backward_done=messages.BackwardDone(micro_batch=micro_batch(step=LATE_STEP))), INVALID, 'the message\'s "step" is'
    yield From(backward_done=messages.BackwardDone(micro_batch=micro_batch())), INVALID, no_hello
    yield From(step_done=messages.StepDone()), INVALID, 'the message lacks "step"'
    yield From(step_done=messages.StepDone(step=LATE_STEP)), INVALID, 'the message\'s "step" is'
    yield From(step_done=messages.StepDone(step=1)), INVALID, no_hello
    yield From(committed=messages.Committed()), INVALID, 'the message lacks "step"'
    yield From(committed=messages.Committed(step=1)), INVALID, no_hello
    yield From(failure=messages.Failure(message=HOSTILE)), INVALID, 'the message lacks "kind"'
    yield From(failure=messages.Failure(kind=1, message=HOSTILE, layer=HOSTILE)), INVALID, no_hello
    yield From(finished=messages.Finished()), INVALID, no_hello
    yield From(leaving=messages.Leaving()), INVALID, no_hello
    yield From(pong=messages.Pong()), INVALID, no_hello
    yield From(pong=messages.Pong(layer=MANY)), INVALID, 'the message lacks "direction"'
    yield From(recorded=messages.Recorded(spans=[messages.Span()] * 2049)), INVALID, 'the message\'s "spans" is'
    yield From(recorded=messages.Recorded(spans=[messages.Span()])), INVALID, "the message lacks"
    yield From(peer_failed=messages.PeerFailed(message=HOSTILE)), INVALID, 'the message lacks "kind"'
    yield From(peer_failed=messages.PeerFailed(kind=2, message=HOSTILE)), INVALID, no_hello


def first_frames():
    """First frames on a tensor connection. Each is refused."""
    unknown = "the tensor connection names an unknown session"
    yield Frame(), 'the message lacks "open"'
    yield Frame(open=0), 'the message lacks "open"'
    for session in (1, 2**64 - 1):
        yield Frame(open=session), unknown
    yield chunk(1, 1), 'the message lacks "open"'
    yield chunk(1, 1, images=messages.Images(micro_batch=micro_batch())), 'the message lacks "open"'


def before_the_job(address, coordinator):
    for first, code, text in first_messages():
        worker = Worker(address, greeting=first)
        found = refusal(worker.control)
        assert found[0] == code and text in found[1], f"{first}: {found} instead of {code} {text}"
        assert len(found[1]) < 3000 and "\x1b" not in found[1], found
        worker.close()
    for first, text in first_frames():
        with grpc.insecure_channel(address, LOCAL) as channel:
            stream = Stream(services.CoordinatorStub(channel).Tensors)
            stream.send(first)
            found = refusal(stream)
            assert found[0] == INVALID and text in found[1], f"{first}: {found} instead of {text}"
            stream.close()
    for texts in ({}, {"host": HOSTILE}, {"coordinator": HOSTILE}, {"model": HOSTILE}):
        for session in (0, 1, 2**64 - 1):
            with grpc.insecure_channel(address, LOCAL) as channel:
                notice = messages.WorkerElsewhere(session=session, **texts)
                assert services.CoordinatorStub(channel).Elsewhere(notice, timeout=20).wanted
    # Some are welcome, and then leave.
    for opens_both in (False, True):
        worker = Worker(address)
        if opens_both:
            worker.open()
        else:
            worker.hear("welcome")
        worker.close()
    coordinator.check()


def tensors_of_nobody(job, micro):
    """Tensors that this worker must not send, and what the coordinator says of them."""
    act = dict(micro_batch=micro, exchange=0, direction=1, from_tower=1)
    right = dict(activations=messages.Activations(**act))

    def activations(**changes):
        return dict(activations=messages.Activations(**{**act, **changes}))

    def gradient(**values):
        return dict(gradient=messages.Gradient(**{**dict(step=micro.step, name="conv1 to conv2"), **values}))

    yield Frame(), 'the message lacks "chunk"'
    yield Frame(open=5), 'the message lacks "chunk"'
    yield chunk(job, 1), 'the message lacks "tensor"'
    yield chunk(0, 1, **right), 'the message lacks "job"'
    yield chunk(job, 0, **right), 'the message lacks "generation"'
    yield chunk(job, 1, b"", **right), '"data" is 0 bytes'
    yield chunk(job, 1, b"123", **right), '"data" is 3 bytes'
    yield chunk(job, 1, **{**right, "crc32c": 1}), "has checksum"
    yield chunk(job, 1, **right), "has shape [1]; the plan requires"
    yield chunk(job, 1, shape=(MANY,) * 8, **right), "has shape"
    yield chunk(job, 1, shape=(1,) * 1000, **right), '"shape" is a list of 1000'
    yield chunk(job, 1, images=messages.Images(micro_batch=micro)), "sent an invalid message at step 1"
    yield chunk(job, 1, **activations(exchange=MANY)), '"exchange" is'
    yield chunk(job, 1, **activations(from_tower=MANY)), '"from_tower" is'
    yield chunk(job, 1, **activations(to_tower=0)), '"to_tower" is'
    yield chunk(job, 1, **activations(direction=0)), 'lacks "direction"'
    yield chunk(job, 1, **activations(direction=2)), 'lacks "to_tower"'
    yield chunk(job, 1, **activations(direction=2, to_tower=MANY)), '"to_tower" is'
    yield chunk(job, 1, **activations(micro_batch=None)), 'lacks "micro_batch"'
    for changes in (dict(step=micro.step + 5), dict(slot=9), dict(micro_batch=9), dict(first_sample=3), dict(phase=2)):
        changed = messages.MicroBatch()
        changed.CopyFrom(micro)
        for name, value in changes.items():
            setattr(changed, name, value)
        yield chunk(job, 1, **activations(micro_batch=changed)), "this micro-batch is not being computed"
    yield chunk(job, 1, **activations(micro_batch=micro_batch(samples=MANY))), '"samples" is'
    yield chunk(job, 1, parameter=messages.Parameter(name=HOSTILE, state=1)), '"name" is'
    yield chunk(job, 1, parameter=messages.Parameter(name="conv1.weight")), 'lacks "state"'
    yield chunk(job, 1, parameter=messages.Parameter(name="conv7.weight", state=1)), '"name" is conv7.weight'
    yield chunk(job, 1, parameter=messages.Parameter(name="conv1.weight", state=1, tower=MANY)), '"tower" is'
    yield chunk(job, 1, parameter=messages.Parameter(name="conv1.weight", state=1, step=LATE_STEP)), '"step" is'
    yield chunk(job, 1, **gradient(name=HOSTILE)), '"name" is'
    yield chunk(job, 1, **gradient(step=0)), 'lacks "step"'
    yield chunk(job, 1, **gradient(piece=MANY)), "no such piece"
    yield chunk(job, 1, **gradient(tower=MANY)), '"tower" is'
    yield chunk(job, 1, **gradient(slots=MANY, first_slot=MANY)), "sent an invalid message at step 1"


def words_out_of_turn(micro):
    """Control messages that are not allowed after the first images, and what the coordinator says of them."""
    yield From(), 'the message lacks "message"'
    yield hello(), "it sent Hello, which is not allowed now"
    yield From(ready=messages.Ready()), "it sent Ready, which is not allowed now"
    yield From(finished=messages.Finished(busy_threads=MANY)), "it sent Finished, which is not allowed now"
    for done in (micro, micro_batch(step=99), micro_batch(slot=9)):
        yield From(backward_done=messages.BackwardDone(micro_batch=done)), "it sent BackwardDone, which is not allowed now"
    yield From(backward_done=messages.BackwardDone(micro_batch=micro, tower=MANY)), "it sent BackwardDone, which is not allowed now"
    for step in (micro.step, micro.step + 1, 2**48):
        yield From(step_done=messages.StepDone(step=step)), "it sent StepDone, which is not allowed now"
    yield From(failure=messages.Failure(kind=2, message=HOSTILE, layer=HOSTILE)), "forged"
    yield From(failure=messages.Failure(kind=3, message="x" * 300_000)), "xxxxx"
    yield From(peer_failed=messages.PeerFailed(peer=MANY, kind=2, message=HOSTILE)), "but it has none"
    yield From(peer_failed=messages.PeerFailed(peer=0, kind=3, message=HOSTILE)), "but it has none"


class Seated(Worker):
    """A worker that has a seat, and has got the first images."""

    def __init__(self, address):
        super().__init__(address)
        self.open()
        assigned = self.hear("assign", 60)
        self.generation, self.job = assigned.generation, assigned.assign.job
        self.tell(ready=messages.Ready())
        while True:
            frame = self.tensors.hear()
            assert isinstance(frame, Frame), frame
            if frame.chunk.WhichOneof("tensor") == "images":
                self.micro = frame.chunk.images.micro_batch
                return

    def tell(self, **message):
        self.say(From(generation=self.generation, **message))


def within_the_job(address, coordinator, conversations):
    """Workers take the second seat one after the other, each breaks a rule, and is given up. The job goes back and waits for the next one."""
    for conversation in conversations:
        worker = Seated(address)
        frames, words = list(tensors_of_nobody(worker.job, worker.micro)), list(words_out_of_turn(worker.micro))
        begin = len(coordinator.lines)
        if conversation < len(frames):
            frame, text = frames[conversation]
            if frame.chunk.generation:
                frame.chunk.generation = worker.generation
            worker.tensors.send(frame)
        else:
            word, text = words[conversation - len(frames)]
            word.generation = worker.generation
            worker.say(word)
        coordinator.wait_for(text, begin)
        worker.close()


def disturbed(program, folder, before, conversations):
    """A job with conversations before it and within it."""
    address = free_address()
    arguments = ["--workers", 2, "--listen", address, "--patience", 300, "--out", folder, "--exchange", "relay"]
    coordinator, workers = Program(program, *JOB, *arguments), []
    try:
        coordinator.wait_for("waiting for workers at")
        before(address, coordinator)
        join = ["worker", "--join", address, "--threads", 1]
        workers.append(Program(program, *join))
        coordinator.wait_for(": 1 of 2")
        within_the_job(address, coordinator, conversations)
        workers.append(Program(program, *join))
        assert coordinator.finish() == 0
    except BaseException:
        print("The coordinator said at last:", *coordinator.lines[-5:], sep="\n")
        raise
    finally:
        for process in [coordinator, *workers]:
            process.end()
    for worker in workers:
        worker.check()


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    count = len(list(tensors_of_nobody(1, micro_batch()))) + len(list(words_out_of_turn(micro_batch())))
    for begin in range(0, count, FAULTS):
        before = before_the_job if begin == 0 else lambda *_: None
        disturbed(program, folder / f"run{begin}", before, range(begin, min(begin + FAULTS, count)))
    print(f"{len(list(first_messages())) + len(list(first_frames())) + 14 + count} conversations")


if __name__ == "__main__":
    main()
