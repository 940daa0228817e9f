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


def classes_of(folder):
    """The names of the classes of a part, in order."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not 1 <= len(classes) <= 256:
        sys.exit(f"{folder}: has {len(classes)} folders of classes; expected 1 to 256, as {folder}/CLASS/NAME")
    return classes


def images_of(folder, classes):
    """Every image of a part with the number of its class, in order."""
    files = [(path.name, label, path) for label, name in enumerate(classes) for path in (folder / name).iterdir()]
    if not files:
        sys.exit(f"{folder}: has no images; expected {folder}/CLASS/NAME")
    return [(label, path) for _, label, path in sorted(files)]


def pixels(path):
    """An image as (channel, row, column)."""
    try:
        with Image.open(path) as image:
            values = numpy.asarray(image.convert("RGB"))
    except OSError as error:
        sys.exit(f"{path}: is not an image that can be read: {error}")
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
    classes, others = classes_of(source / "train"), classes_of(source / "test")
    if classes != others:
        sys.exit(f"{source}: the classes differ: {', '.join(classes)} in train, and {', '.join(others)} in test")
    for part, name in PARTS.items():
        files = images_of(source / part, classes)
        images = numpy.stack([pixels(path) for _, path in files]).tobytes()
        labels = bytes(label for label, _ in files)
        write(out / f"{name}-images-idx4-ubyte", struct.pack(">HBB4I", 0, 8, 4, len(files), 3, 32, 32), images)
        write(out / f"{name}-labels-idx1-ubyte", struct.pack(">HBBI", 0, 8, 1, len(files)), labels)
        digest.update(images + labels)
        print(f"{part}: {len(files)} images")
    print(f"classes 0 to {len(classes) - 1}: {', '.join(classes)}")
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
