"""Writes the files that the fuzz targets begin with to fuzz/seeds/TARGET: small ones of each format, beside those of dataset/golden, and what
a job of three steps writes. The repository has them; this program says how they were made. Needs NumPy, Pillow, and a release build.

    cargo build --release && python3 fuzz/seeds.py
"""

import gzip
import io
import pathlib
import pickle
import shutil
import subprocess
import tarfile
import tempfile

import numpy as np
from PIL import Image

here = pathlib.Path(__file__).resolve().parent
golden = here.parent / "dataset" / "golden"
rng = np.random.default_rng(1)


def corpus(target):
    folder = here / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def encoded(mode, kind, **options):
    channels = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 1}[mode]
    pixels = rng.integers(256, size=(9, 11, channels), dtype=np.uint8)
    base = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if mode == "CMYK" else "RGBA"}[channels]
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(), base).convert(mode).save(out, kind, **options)
    return out.getvalue()


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    return header + array.astype(np.uint8).tobytes()


def batch(count, labels):
    data = rng.integers(256, size=(count, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": data, labels: [index % 2 for index in range(count)]}, 2)


def archive(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"a-folder/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes(parts + [value])


def protobuf(fields):
    """A message of protocol buffers: values by the numbers of their fields. Numbers, bytes, and 32 bits as a tuple of one."""
    out = b""
    for number, value in fields.items():
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, tuple):
            out += varint(number << 3 | 5) + value[0].to_bytes(4, "little")
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def crc32c(payload):
    value = 0xFFFFFFFF
    for byte in payload:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def heard(kind, message):
    """A message as the target `message` reads it."""
    return bytes([kind]) + len(message).to_bytes(2, "big") + message


def messages():
    """A script of messages for each kind of peer, by name."""
    micro = protobuf({1: 1, 2: 1, 6: 2})
    says = {
        1: protobuf({1: 12, 2: b"0.1", 3: 7, 4: 1, 5: b"scalar", 6: b"host", 7: b"10.0.0.1:80"}),
        3: protobuf({1: micro, 2: 1}),
        5: protobuf({1: 2, 2: b"why", 3: b"conv1", 4: 1, 5: 3}),
        8: protobuf({1: 5, 2: 6, 3: 7, 4: 8, 6: 1, 7: 1}),
        9: protobuf({1: 1, 4: protobuf({1: 5, 2: 6, 4: protobuf({1: 1, 2: 1})}), 5: 99}),
        10: protobuf({1: 1, 2: protobuf({1: 1, 2: 0, 3: 1, 4: 1, 5: 8}), 3: 5}),
        11: protobuf({1: 1, 2: 2, 3: b"why"}),
    }
    yield "worker", b"".join(heard(0, protobuf({number: body, 16: 1})) for number, body in says.items())
    model = (here.parent / "models" / "alexnet-fashion.toml").read_bytes()
    placement = {3: bytes([0, 1]), 14: bytes([0, 1]), 16: 2}
    peer = protobuf({1: 1, 2: b"10.0.0.1:80", 3: bytes(32)})
    assign = protobuf({1: 5, 2: model, **placement, 8: 16, 13: 16, 9: 2, 10: 2, 11: 1, 15: peer})
    orders = {1: protobuf({1: 9}), 2: assign, 3: protobuf({1: 1}), 4: protobuf({1: 1}), 5: protobuf({1: b"why"}), 6: protobuf({1: 5})}
    yield "coordinator", b"".join(heard(1, protobuf({number: body, 16: 1})) for number, body in orders.items())
    tensors = {
        2: (protobuf({1: micro}), [2, 1, 4, 4], bytes(32)),
        3: (protobuf({1: micro, 2: 0, 3: 1}), [2, 4, 4, 2], bytes(256)),
        4: (protobuf({2: b"fc3.bias", 4: 1}), [2], bytes(8)),
        10: (protobuf({1: 1, 2: b"conv1 to conv2", 6: 1}), [29], bytes(116)),
    }
    frames = b""
    for number, (tensor, shape, payload) in tensors.items():
        chunk = {1: 7, 9: 1, number: tensor, 5: bytes(shape), 7: payload, 8: (crc32c(payload),)}
        frames += heard(2, protobuf({2: protobuf(chunk)}))
    yield "tensors", frames + heard(3, protobuf({1: 5, 2: 1, 3: 1, 4: bytes(16)}))


SETTINGS = [
    "10.0.0.7:7878", "[::1]:80", "unix:/run/x.sock", "kill@forward:5", "limp:100@join", "flip@exchange:3", "step:30:0.1", "constant", "cosine",
    "all", "off", "5,10-20", "auto", "relay", "shuffled", "parquet", "avx2", "correct-horse", "bundled", "synthetic:3",
]


def job():
    """What a short job and `convoy certs` write."""
    program = here.parent / "target/release/convoy"
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        run = place / "run"
        command = f"train --model {here}/model.toml --data synthetic --batch 8 --steps 3 --schedule constant --trace all --out {run}"
        subprocess.run([program, *command.split()], check=True, stdout=subprocess.DEVNULL)
        [checkpoint] = (run / "checkpoints").iterdir()
        manifest, weights = ((checkpoint / name).read_bytes() for name in ("manifest.json", "weights.safetensors"))
        (corpus("checkpoint") / "checkpoint").write_bytes(manifest + b"\0" + weights)
        (corpus("weights") / "weights").write_bytes(weights)
        (corpus("records") / "records").write_bytes((run / "run.json").read_bytes() + b"\0" + (run / "metrics.jsonl").read_bytes())
        (corpus("trace") / "trace").write_bytes((run / "trace.json").read_bytes())
        subprocess.run([program, "certs", place / "certs", "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
        secrets = {file.stem: file.read_bytes() for file in (place / "certs").iterdir()}
        (corpus("secrets") / "worker").write_bytes(secrets["worker-1"] + secrets["worker-1-key"])
        (corpus("secrets") / "ca").write_bytes(secrets["ca"] + secrets["ca-key"])
    for number, value in enumerate(SETTINGS):
        (corpus("setting") / f"{number:02}").write_text(value)


def main():
    job()
    for name, script in messages():
        (corpus("message") / name).write_bytes(script)
    for file in (here.parent / "models").glob("*.toml"):
        shutil.copy(file, corpus("model"))

    images = corpus("image")
    for mode in ("L", "RGB", "CMYK"):
        (images / f"{mode}.jpg").write_bytes(encoded(mode, "JPEG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (images / "turned.jpg").write_bytes(encoded("RGB", "JPEG", exif=exif))
    for mode in ("1", "L", "LA", "RGB", "RGBA", "P"):
        (images / f"{mode}.png").write_bytes(encoded(mode, "PNG"))
    for file in golden.glob("*.jpg"):
        shutil.copy(file, images)

    files = corpus("file")
    for file in [*golden.glob("*.npz"), *golden.glob("*.parquet")]:
        shutil.copy(file, files)
    hundred = {"train": batch(2, b"fine_labels"), "test": batch(2, b"fine_labels"), "meta": pickle.dumps({}, 2)}
    (files / "python.tar").write_bytes(archive(hundred))
    (files / "python.tar.gz").write_bytes(gzip.compress(archive(hundred)))
    record = b"\0\0" + bytes(3072)
    (files / "binary.tar.gz").write_bytes(gzip.compress(archive({"train.bin": record, "test.bin": record})))

    pickles = corpus("pickle")
    (pickles / "batch").write_bytes(hundred["test"])
    for file in golden.glob("*.pickle"):
        shutil.copy(file, pickles)

    arrays = corpus("idx")
    for name, shape in [("labels", (2,)), ("images", (2, 1, 1)), ("colour", (2, 1, 1, 1))]:
        (arrays / name).write_bytes(idx(rng.integers(10, size=shape)))
        (arrays / f"{name}.gz").write_bytes(gzip.compress(idx(rng.integers(10, size=shape))))


main()
