"""Floods a process with connections of strangers, one kind after the other, and measures what they cost it.

    floods.py ADDRESS PID VERSION CONNECTIONS SERVICE [KIND...]

SERVICE is `coordinator`, `health`, or `encrypted` for a coordinator with TLS. Prints a line of JSON for each kind: the name, the resident memory of the process before the flood and
at its peak, in megabytes, how many connections the process closed, and how many descriptors it had then. VERSION is that of the protocol, and KIND names some kinds.
"""

import json
import pathlib
import resource
import select
import ssl
import sys
import time

from raw import (ACKNOWLEDGED, CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, call, connect, data, fields, frame, message)

HEALTH, CONTROL, TENSORS, ELSEWHERE = (
    "/grpc.health.v1.Health/Check",
    "/convoy.v1.Coordinator/Control",
    "/convoy.v1.Coordinator/Tensors",
    "/convoy.v1.Coordinator/Elsewhere",
)
STREAMS = 200
"""Calls of a connection, unless the process allows fewer."""
HOLD, SOON = 1.0, 15.0
"""Seconds for which all connections are held, and for which they are held at most until those that are too many are closed."""
ROOM = 250
"""More connections of strangers than a process keeps."""


def calls(path, payload, streams=STREAMS):
    """Calls whose messages lack their last byte."""
    numbers = range(1, 2 * streams, 2)
    return b"".join(call(number, path) + data(number, message(payload, len(payload) + 1)) for number in numbers)


def hello(version):
    """A valid Hello: protocol_version, threads, host."""
    assert version < 128
    body = bytes([8, version, 32, 1]) + b"\x32\x01x"
    return message(b"\x0a" + bytes([len(body)]) + body)


def kinds(version):
    """What each kind of stranger sends, after the preface of HTTP/2 if it is a list."""
    text = b"\x0a\xa0\x8d\x06" + b"x" * 100_000
    return {
        "silent": b"",
        "preface": [],
        "http1": b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "tls": bytes.fromhex("1603010200010001fc0303") + b"\x55" * 200,
        "garbage": bytes(range(256)) * 400,
        "partial-frame": [call(1, CONTROL), frame(DATA, 0, 1, message(b"\x0a" * 250_000), 262_000)],
        "partial-health": [calls(HEALTH, b"x" * 4_000_000, 3)],
        "many-partial-health": [calls(HEALTH, b"x" * 20_000)],
        "partial-control": [calls(CONTROL, b"x" * 1_000_000, 3)],
        "many-partial-control": [calls(CONTROL, b"x" * 20_000)],
        "partial-tensors": [calls(TENSORS, b"x" * 300_000, 4)],
        "elsewhere": [b"".join(call(n, ELSEWHERE) + data(n, message(text), end=True) for n in range(1, 40, 2))],
        "partial-elsewhere": [calls(ELSEWHERE, text)],
        "unknown-path": [calls("/a.b/C", b"x" * 100_000)],
        "endless-headers": [frame(HEADERS, 0, 1, fields(CONTROL)), frame(CONTINUATION, 0, 1, fields(CONTROL)) * 2000],
        "resets": [b"".join(call(n, CONTROL) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in range(1, 1000, 2))],
        "pings": [frame(PING, 0, 0, b"12345678") * 5000],
        "settings": [frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff") * 5000],
        "wrong-sessions": [b"".join(call(n, TENSORS) + data(n, message(b"\x08\x07")) for n in range(1, 8, 2))],
        "never-reading": [frame(PING, 0, 0, b"12345678") * 3000, call(1, HEALTH), data(1, message(b""), end=True)],
        "within-the-allowance": [calls(CONTROL, b"x" * 15_000, 4)],
        "hello": [call(1, CONTROL), data(1, hello(version))],
        "hello-and-leave": [call(1, CONTROL), data(1, hello(version), end=True)],
        "hello-and-reset": [call(1, CONTROL), data(1, hello(version)), frame(RST_STREAM, 0, 1, b"\0\0\0\x08")],
        "hello-and-flood": [call(1, CONTROL), data(1, hello(version)), data(1, message(b"\x0a" * 1_000_000, 1_000_001))],
    }


def first_flight(**versions):
    """What a client of TLS sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = without_certificate()
    for name, version in versions.items():
        setattr(context, name, version)
    try:
        context.wrap_bio(incoming, outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


def without_certificate():
    """A client that trusts everybody and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def shake_hands(connection):
    """Completes the client's part of a handshake, without a certificate, and keeps the connection."""
    stream = without_certificate().wrap_socket(connection.dup())
    stream.sendall(PREFACE)


def encrypted_kinds():
    """What each kind of stranger sends to an address with TLS."""
    record = lambda kind, payload: bytes([kind, 3, 1]) + len(payload).to_bytes(2) + payload
    hello = first_flight()
    # A handshake message of 64 KB that never ends.
    long = [b"\x01\x00\xff\xf0" + bytes(16_000), bytes(16_000), bytes(16_000), bytes(16_000)]
    return {
        "silent": b"",
        "half-hello": hello[:100],
        "hello": hello,
        "two-hellos": hello * 2,
        "long-hello": b"".join(record(22, part) for part in long),
        "pieces": b"".join(record(22, bytes([byte])) for byte in hello[5:-1]),
        "empty-records": record(22, b"") * 20_000,
        "alerts": record(21, b"\x01\x00") * 10_000,
        "cipher-changes": hello + record(20, b"\x01") * 10_000,
        "data-first": record(23, bytes(16_000)) * 10,
        "old-version": first_flight(minimum_version=ssl.TLSVersion.TLSv1_2, maximum_version=ssl.TLSVersion.TLSv1_2),
        "garbage": bytes(range(256)) * 400,
        "http1": b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "preface": PREFACE,
        "no-certificate": shake_hands,
    }


def status(process, key):
    """A figure of a process in megabytes."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def is_closed(connection):
    """Whether the other side has closed the connection. What it sent is dropped."""
    while select.select([connection], [], [], 0)[0]:
        try:
            if not connection.recv(1 << 16):
                return True
        except OSError:
            return True
    return False


def send(connection, content):
    """Sends what a kind sends, as far as the other side takes it."""
    connection.settimeout(1)
    try:
        if callable(content):
            content(connection)
        elif isinstance(content, bytes):
            connection.sendall(content)
        else:
            connection.sendall(PREFACE)
            # The last frame of the answer tells how much may be sent. It is the only one with this header.
            answer = b""
            while frame(WINDOW_UPDATE, 0, 0, claimed=4) not in answer:
                part = connection.recv(1 << 16)
                if not part:
                    return
                answer += part
            connection.sendall(frame(SETTINGS, ACKNOWLEDGED, 0))
            for part in content:
                connection.sendall(part)
    except OSError:
        pass


def flood(address, process, content, count):
    """Opens the connections, sends, and holds them."""
    pathlib.Path(f"/proc/{process}/clear_refs").write_text("5")
    before, began = status(process, "VmRSS"), time.monotonic()
    connections = []
    for _ in range(count):
        connections.append(connect(address))
        send(connections[-1], content)
    # Those that are too many are closed soon, and what all of them cost shows within a second.
    sent, closed = time.monotonic(), set()
    while time.monotonic() < sent + HOLD or (len(closed) < count - ROOM and time.monotonic() < sent + SOON):
        closed.update(number for number, connection in enumerate(connections) if number not in closed and is_closed(connection))
        time.sleep(0.05)
    most, descriptors = status(process, "VmHWM"), len(list(pathlib.Path(f"/proc/{process}/fd").iterdir()))
    for connection in connections:
        connection.close()
    return {"before": before, "most": most, "closed": len(closed), "descriptors": descriptors, "seconds": time.monotonic() - began}


def main():
    address, process, version, count, service, *chosen = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name, content in (encrypted_kinds() if service == "encrypted" else kinds(int(version))).items():
        is_here = service != "health" or not any(part in name for part in ("control", "tensors", "elsewhere", "hello", "sessions"))
        if is_here and (not chosen or name in chosen):
            print(json.dumps({"kind": name, **flood(address, process, content, int(count))}), flush=True)


if __name__ == "__main__":
    main()
