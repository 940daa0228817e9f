"""HTTP/2 and gRPC as bytes, for peers that break their rules: messages without an end, frames without a payload, streams without a limit."""

import socket
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, ACKNOWLEDGED, END_HEADERS = 1, 1, 4


def frame(kind, flags, stream, payload=b"", claimed=None):
    """A frame. Its header claims `claimed` bytes, if that is given."""
    length = len(payload) if claimed is None else claimed
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)


def field(name, value):
    """A header field, literal and not indexed, with lengths below 127."""
    name, value = name.encode(), value.encode()
    assert max(len(name), len(value)) < 127
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def fields(path, token=None):
    """The header block of a call."""
    block = field(":method", "POST") + field(":scheme", "http") + field(":path", path) + field(":authority", "x")
    block += field("content-type", "application/grpc") + field("te", "trailers")
    return block + (field("authorization", f"Bearer {token}") if token else b"")


def call(stream, path, token=None):
    """The headers of a call."""
    return frame(HEADERS, END_HEADERS, stream, fields(path, token))


def data(stream, payload, end=False):
    """A payload in DATA frames of at most 16 KB, which every server accepts."""
    size = 16384
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    frames = [frame(DATA, 0, stream, part) for part in parts]
    return b"".join(frames) + (frame(DATA, END_STREAM, stream) if end else b"")


def message(payload, claimed=None):
    """A gRPC message. Its prefix claims `claimed` bytes, if that is given."""
    return struct.pack(">BI", 0, len(payload) if claimed is None else claimed) + payload


def connect(address):
    """A TCP connection."""
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
