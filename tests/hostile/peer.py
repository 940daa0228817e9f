"""A peer of Convoy that knows the .proto file and nothing else: messages, checksums, connections, and processes to talk to."""

import pathlib
import queue
import socket
import subprocess
import sys
import threading
import time

import grpc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto" / "proto"
sys.path.insert(0, str(PROTO))
messages, services = grpc.protos_and_services("convoy/v1/convoy.proto")

VERSION = int(next(line for line in (PROTO.parent / "src/lib.rs").read_text().splitlines() if "PROTOCOL_VERSION" in line).split()[-1][:-1])
LOCAL = [("grpc.use_local_subchannel_pool", 1)]
"""Without this option, the library shares one connection between all channels of an address."""
SOON = 20
"""Seconds that no answer takes."""
HOSTILE = "\x1b[31mred\n2026-01-01 ERROR forged\u202e\u2028" * 700
"""A text that is long and commands a terminal."""


def checksum(payload):
    """CRC-32C, bit by bit: the payloads here are small."""
    value = 0xFFFFFFFF
    for byte in payload:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def free_address():
    """An address of this machine that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def hello(**changes):
    values = dict(protocol_version=VERSION, convoy_version="9", process_id=1, threads=1, instruction_set="scalar", host="elsewhere")
    return messages.FromWorker(hello=messages.Hello(**{**values, **changes}))


def chunk(job, generation, payload=b"\0\0\0\0", shape=(1,), **fields):
    """A frame with a part of a tensor. `fields` hold the tensor, and may change everything else."""
    values = dict(job=job, generation=generation, shape=shape, data=payload, crc32c=checksum(payload))
    return messages.Frame(chunk=messages.Chunk(**{**values, **fields}))


class Stream:
    """One call with messages in both directions."""

    def __init__(self, call, token=None):
        self.outgoing, self.incoming = queue.Queue(), queue.Queue()
        metadata = [("authorization", f"Bearer {token}")] if token else None
        self.call = call(iter(self.outgoing.get, None), metadata=metadata)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for message in self.call:
                self.incoming.put(message)
        except grpc.RpcError as error:
            self.incoming.put(error)
        self.incoming.put(None)

    def send(self, message):
        self.outgoing.put(message)

    def hear(self, seconds=SOON):
        """The next message, the error that ended the call, or None at its end."""
        return self.incoming.get(timeout=seconds)

    def close(self):
        self.outgoing.put(None)
        self.call.cancel()


class Worker:
    """A worker that says what a conversation wants. It has two connections."""

    def __init__(self, address, token=None, greeting=None):
        self.channels = [grpc.insecure_channel(address, LOCAL) for _ in range(2)]
        self.token, self.tensors = token, None
        self.control = Stream(services.CoordinatorStub(self.channels[0]).Control, token)
        self.say(greeting or hello())

    def say(self, message):
        self.control.send(message)

    def hear(self, kind, seconds=SOON):
        """The next message of a kind. Others are left out."""
        while True:
            heard = self.control.hear(seconds)
            assert isinstance(heard, messages.ToWorker), f"{heard} instead of {kind}"
            if heard.WhichOneof("message") == kind:
                return heard

    def open(self, session=None):
        self.tensors = Stream(services.CoordinatorStub(self.channels[1]).Tensors, self.token)
        self.tensors.send(messages.Frame(open=session if session is not None else self.hear("welcome").welcome.session))

    def close(self):
        self.control.close()
        if self.tensors:
            self.tensors.close()
        for channel in self.channels:
            channel.close()


def refusal(stream):
    """How a call ended: the code and the text."""
    while True:
        heard = stream.hear()
        if isinstance(heard, grpc.RpcError):
            return heard.code(), heard.details()
        assert heard is not None, "the call ended without an error"


class Program:
    """A process of Convoy, and the lines that it has said."""

    def __init__(self, program, *arguments):
        command = [program, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.lines, self.arrived = [], threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.arrived:
                self.lines.append(line.decode(errors="backslashreplace").rstrip("\n"))
                self.arrived.notify_all()

    def wait_for(self, part, begin=0, seconds=SOON):
        """Waits for a line with `part` after the first `begin` ones. Returns it."""
        limit = time.monotonic() + seconds
        with self.arrived:
            while True:
                for line in self.lines[begin:]:
                    if part in line:
                        return line
                left = limit - time.monotonic()
                assert left > 0, f"no {part!r} in " + "\n".join(self.lines[begin:])
                self.arrived.wait(left)

    def finish(self, seconds=120):
        """Waits for the end. Returns the exit code and checks that nothing hostile was said."""
        code = self.process.wait(seconds)
        self.reader.join(seconds)
        self.check()
        return code

    def check(self):
        """No line is long, none commands a terminal, none was forged, and nothing panicked."""
        for line in self.lines:
            assert len(line) < 6000, f"a line of {len(line)} characters: {line[:300]}"
            assert not any(mark in line for mark in "\x1b\u202e\u2028"), repr(line)
            assert not line.startswith("2026-01-01 ERROR forged"), line
            assert "panicked" not in line, line

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
