"""Makes IDX files of CIFAR-10 from JPEG or PNG files: train/CLASS/NAME and test/CLASS/NAME, in a folder or in an archive that tar reads.

    python3 study/data/cifar10.py cifar10-jpeg.tar.zst cifar10

needs Pillow and numpy. The classes are numbered in the order of their names, and the images come in the order of their file names, so
the same files and the same decoder give the same bytes. Decoders of JPEG may differ in the last bit of a pixel: the SHA-256 at the end
says which images these are.
"""

import hashlib
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy
from PIL import Image

# The names that MNIST gave the two parts.
PARTS = {"train": "train", "test": "t10k"}
SHAPE = (32, 32, 3)


def images_of(folder):
    """Every image of a part with the number of its class, in order."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not classes:
        sys.exit(f"{folder}: has no folders of classes; expected {folder}/CLASS/NAME")
    files = [(path.name, label, path) for label, name in enumerate(classes) for path in (folder / name).iterdir()]
    return classes, [(label, path) for _, label, path in sorted(files)]


def pixels(path):
    """An image as (channel, row, column)."""
    with Image.open(path) as image:
        values = numpy.asarray(image.convert("RGB"))
    if values.shape != SHAPE:
        sys.exit(f"{path}: is {values.shape[1]} x {values.shape[0]} pixels; expected 32 x 32")
    return values.transpose(2, 0, 1)


def write(path, header, data):
    """A whole file, or none."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(header + data)
    temporary.rename(path)


def convert(source, out):
    digest = hashlib.sha256()
    for part, name in PARTS.items():
        classes, files = images_of(source / part)
        images = numpy.stack([pixels(path) for _, path in files]).tobytes()
        labels = bytes(label for label, _ in files)
        write(out / f"{name}-images-idx4-ubyte", struct.pack(">HBB4I", 0, 8, 4, len(files), 3, 32, 32), images)
        write(out / f"{name}-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, len(files)), labels)
        digest.update(images + labels)
        print(f"{part}: {len(files)} images of {len(classes)} classes ({', '.join(classes)})")
    print(f"SHA-256 over all pixels and labels: {digest.hexdigest()}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        return convert(source, out)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-xf", str(source.absolute()), "-C", folder], check=True)
        convert(pathlib.Path(folder), out)


main()
