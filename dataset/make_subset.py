#!/usr/bin/env python3
"""Cuts the subset of Fashion-MNIST that is bundled with Convoy out of the whole set.

    python3 make_subset.py FOLDER_OF_THE_WHOLE_SET

It keeps the first 500 training and the first 100 test images of each class, in the order of the file, and writes
four gzipped IDX files into fashion-mnist-subset/ beside this script. Nothing is drawn at random and no time is
recorded, so the same input and the same zlib give the same bytes. Only the standard library is needed.
"""

import gzip
import io
import pathlib
import struct
import sys

CLASS_COUNT = 10
PER_CLASS = {"train": 500, "t10k": 100}
IMAGES_MAGIC = 0x00000803
LABELS_MAGIC = 0x00000801


def read_idx(path, magic):
    """The dimensions and the payload of one gzipped IDX file, checked against each other."""
    raw = gzip.decompress(path.read_bytes())
    (found,) = struct.unpack_from(">I", raw)
    if found != magic:
        sys.exit(f"{path} starts with 0x{found:08x}, not with 0x{magic:08x}")
    dims = struct.unpack_from(f">{found & 0xFF}I", raw, 4)
    payload = raw[4 + 4 * len(dims):]
    expected = 1
    for dim in dims:
        expected *= dim
    if len(payload) != expected:
        sys.exit(f"{path} holds {len(payload)} bytes after its header, not {expected}")
    return dims, payload


def write_idx(path, magic, dims, payload):
    """Writes one gzipped IDX file without a name or a time in its gzip header."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as out:
        out.write(struct.pack(f">I{len(dims)}I", magic, *dims))
        out.write(payload)
    path.write_bytes(packed.getvalue())


def chosen(labels, per_class):
    """The indices of the first `per_class` images of each class, ascending."""
    seen = [0] * CLASS_COUNT
    indices = []
    for index, label in enumerate(labels):
        if seen[label] < per_class:
            seen[label] += 1
            indices.append(index)
    if seen != [per_class] * CLASS_COUNT:
        sys.exit(f"wanted {per_class} images of each class, found {seen}")
    return indices


def cut(whole, subset, prefix, per_class):
    """Cuts one split."""
    images_name = f"{prefix}-images-idx3-ubyte.gz"
    labels_name = f"{prefix}-labels-idx1-ubyte.gz"
    (count, height, width), images = read_idx(whole / images_name, IMAGES_MAGIC)
    (label_count,), labels = read_idx(whole / labels_name, LABELS_MAGIC)
    if count != label_count:
        sys.exit(f"{images_name} has {count} images, {labels_name} has {label_count} labels")
    indices = chosen(labels, per_class)
    size = height * width
    kept_images = b"".join(images[i * size:(i + 1) * size] for i in indices)
    kept_labels = bytes(labels[i] for i in indices)
    write_idx(subset / images_name, IMAGES_MAGIC, (len(indices), height, width), kept_images)
    write_idx(subset / labels_name, LABELS_MAGIC, (len(indices),), kept_labels)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    subset = pathlib.Path(__file__).resolve().parent / "fashion-mnist-subset"
    subset.mkdir(exist_ok=True)
    for prefix, per_class in PER_CLASS.items():
        cut(pathlib.Path(sys.argv[1]), subset, prefix, per_class)


if __name__ == "__main__":
    main()
