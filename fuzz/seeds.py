"""Writes the files that the fuzz targets begin with to fuzz/corpus/TARGET: small ones of each format, beside those of dataset/golden.
Needs NumPy and Pillow.

    python3 fuzz/seeds.py
"""

import gzip
import io
import pathlib
import pickle
import shutil
import tarfile

import numpy as np
from PIL import Image

here = pathlib.Path(__file__).resolve().parent
golden = here.parent / "dataset" / "golden"
rng = np.random.default_rng(1)


def corpus(target):
    folder = here / "corpus" / target
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


def main():
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
