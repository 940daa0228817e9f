"""Makes sets of images for tests/readers.rs, reads them with other people's readers, and writes what those see: torchvision's ImageFolder, CIFAR10
and transforms, pyarrow, Pillow, and a rewriting of the augmentation of the AlexNet paper in NumPy.

    python tests/readers/expected.py OUT [SIGNS CIFAR]

For each case there is NAME.json with the labels, the files and the classes, and NAME.bin with the pixels, (image, channel, row, column). SIGNS
and CIFAR are folders of image files; of the first one, all images are read, and of the second one its test images.
"""

import io
import json
import pathlib
import pickle
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from torchvision import datasets, transforms

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
import torchnet  # noqa: E402

out = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(20)


def smooth(height, width):
    """An image like a photograph: smooth shapes with some noise."""
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC)).astype(int)
    return np.clip(large + rng.integers(-12, 13, (height, width, 3)), 0, 255).astype(np.uint8)


def save(name, images, labels, files=(), classes=()):
    """Images as Pillow has them, (row, column, channel)."""
    planes = [np.asarray(image).transpose(2, 0, 1) for image in images]
    (out / f"{name}.bin").write_bytes(np.stack(planes).tobytes())
    record = {"labels": [int(label) for label in labels], "files": list(files), "classes": list(classes)}
    (out / f"{name}.json").write_text(json.dumps(record))


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def folder_case(name, root, transform=lambda image: image):
    """All images of a folder, as ImageFolder orders them."""
    folder = datasets.ImageFolder(root)
    images, labels = zip(*((transform(image), label) for image, label in folder))
    save(name, images, labels, [str(pathlib.Path(path).relative_to(root)) for path, _ in folder.samples], folder.classes)


# --- folders ----------------------------------------------------------------------------------------------------------

names = ["b.png", "B.PNG", "10.png", "9.png", "ä.png", "a/z.png", "a/b/c.png", "z/a.png"]
for index, folder in enumerate(["Zebra", "apple", "äpfel", "10", "9", "a b"]):
    for name in names[index % 3 :]:
        write(out / "png" / folder / name, smooth(29, 37))
        write(out / "jpeg" / folder / name.replace("png", "jpg").replace("PNG", "JPG"), smooth(29, 37), quality=90)
for part in ("png", "jpeg"):
    folder_case(part, out / part)

for index in range(40):
    height, width = rng.integers(24, 90, 2)
    write(out / "sizes" / str(index % 2) / f"{index:02}.png", smooth(height, width))
scaled = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(20)])
folder_case("sizes", out / "sizes", scaled)
ten = transforms.Compose([transforms.Resize(24), transforms.TenCrop(20)])
folder = datasets.ImageFolder(out / "sizes")
save("ten", [view for image, _ in folder for view in ten(image)], [label for _, label in folder for _ in range(10)])

for value in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = value
    for index in range(2):
        write(out / "exif" / str(index) / f"{value}.jpg", smooth(*((31, 24) if value > 4 else (24, 31))), quality=95, exif=exif)
folder = datasets.ImageFolder(out / "exif", loader=lambda path: ImageOps.exif_transpose(Image.open(path)))
save("exif", *zip(*folder))

# --- augmentation -----------------------------------------------------------------------------------------------------

SEED, EPOCH, SIDE, NOISE = 9, 3, 20, 0.1


def words(purpose, first, count):
    """The words of a purpose from number `first` on."""
    return [int(word) for word in torchnet.random_words(SEED, purpose, first + count)[first:]]


def below(word, end):
    return word * end >> 32


def normals(image):
    """Three normal numbers: Box and Muller, as docs/NUMERICS.md has it."""
    w = np.array(words(f"colours:{EPOCH}", image * 8, 8), dtype=object)
    found = []
    for block in (w[:4], w[4:]):
        u = float(((block[1] << 32 | block[0]) >> 11) + 1) * 2.0**-53
        v = float((block[3] << 32 | block[2]) >> 11) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(u))
        found += [radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)]
    return found[:3]


for index in range(60):
    height, width = (24, int(rng.integers(24, 50))) if index % 2 else (int(rng.integers(24, 50)), 24)
    pixels = smooth(height, width)
    write(out / "drawn" / "train" / str(index % 2) / f"{index:02}.png", pixels)
    if index < 4:
        write(out / "drawn" / "test" / str(index % 2) / f"{index:02}.png", pixels)
folder = datasets.ImageFolder(out / "drawn" / "train")


def square(image):
    """The central square, where the paper takes its crops from."""
    return np.asarray(transforms.CenterCrop(24)(image))


pictures = [square(image) for image, _ in folder]
everything = np.concatenate([picture.reshape(-1, 3) for picture in pictures]) / 255.0
variances, vectors = np.linalg.eigh(np.cov(everything.T, bias=True))
variances, axes = variances[::-1], vectors.T[::-1]
axes = [axis if axis[np.abs(axis).argmax()] > 0 else -axis for axis in axes]
drawn = []
for index, picture in enumerate(pictures):
    w = words(f"augment:{EPOCH}", index * 16, 5)
    top, left = below(w[0], 24 - SIDE + 1), below(w[1], 24 - SIDE + 1)
    view = picture[top : top + SIDE, left : left + SIDE]
    if below(w[2], 2):
        view = view[:, ::-1]
    alphas = [NOISE * number for number in normals(index)]
    offset = sum(axis * alpha * variance for axis, alpha, variance in zip(axes, alphas, variances))
    view = np.clip(np.rint(view + 255.0 * offset), 0, 255).astype(np.uint8)
    middle = below(w[3], SIDE), below(w[4], SIDE)
    rows, columns = (slice(max(at - 3, 0), at + 4) for at in middle)
    view[rows, columns] = [51, 102, 204]
    drawn.append(view)
save("drawn", drawn, [label for _, label in folder])


def rectangle(image, height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random resized crop, as docs/NUMERICS.md has it: torchvision's, with other random numbers."""
    w = words(f"resized:{EPOCH}", image * 24, 24)
    between = lambda word, low, high: low + (high - low) * (word / 2**32)
    for attempt in range(10):
        area = height * width * between(w[2 * attempt], *scale)
        aspect = np.exp(between(w[2 * attempt + 1], *np.log(ratio)))
        wide, high = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return below(w[20], height - high + 1), below(w[21], width - wide + 1), high, wide
    if width / height < ratio[0]:
        high, wide = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        high, wide = height, round(height * ratio[1])
    else:
        high, wide = height, width
    return (height - high) // 2, (width - wide) // 2, high, wide


folder = datasets.ImageFolder(out / "sizes")
parts = []
for index, (image, _) in enumerate(folder):
    top, left, high, wide = rectangle(index, image.height, image.width)
    parts.append(image.crop((left, top, left + wide, top + high)).resize((SIDE, SIDE), Image.BILINEAR))
save("resized", parts, [label for _, label in folder])

# --- arrays -----------------------------------------------------------------------------------------------------------

planes = rng.integers(0, 256, (60, 3072), dtype=np.uint8)
labels = rng.integers(0, 10, 60)
python, binary = out / "python" / "cifar-10-batches-py", out / "binary" / "cifar-10-batches-bin"
python.mkdir(parents=True)
binary.mkdir(parents=True)
classes = [f"class {number}" for number in range(10)]
for index, name in enumerate([f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]):
    mine = slice(index * 10, index * 10 + 10)
    batch = {"data": planes[mine], "labels": [int(label) for label in labels[mine]], "batch_label": name}
    (python / name).write_bytes(pickle.dumps(batch, protocol=2))
    records = np.concatenate([labels[mine, None].astype(np.uint8), planes[mine]], axis=1)
    (binary / f"{name}.bin").write_bytes(records.tobytes())
(python / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}, protocol=2))
(binary / "batches.meta.txt").write_text("\n".join(classes) + "\n")
with tarfile.open(out / "cifar-10-python.tar.gz", "w:gz") as archive:
    archive.add(python, python.name)
with tarfile.open(out / "cifar-10-binary.tar", "w") as archive:
    archive.add(binary, binary.name)


class Unchecked(datasets.CIFAR10):
    """These are not the published files."""

    def _check_integrity(self):
        return True

    def _load_meta(self):
        self.classes = classes


for part in (True, False):
    found = Unchecked(out / "python", train=part)
    save("cifar-train" if part else "cifar-test", found.data, found.targets, classes=classes)

hundred = out / "hundred" / "cifar-100-python"
hundred.mkdir(parents=True)
for name in ("train", "test"):
    batch = {"data": planes[:20], "fine_labels": list(range(20)), "coarse_labels": [19 - number for number in range(20)]}
    (hundred / name).write_bytes(pickle.dumps(batch, protocol=2))
fine = [f"fine {number}" for number in range(100)]
(hundred / "meta").write_bytes(pickle.dumps({"fine_label_names": fine, "coarse_label_names": fine[:20]}, protocol=2))


class UncheckedHundred(datasets.CIFAR100):
    """These are not the published files."""

    def _check_integrity(self):
        return True

    def _load_meta(self):
        self.classes = fine


found = UncheckedHundred(out / "hundred", train=False)
save("hundred", found.data, found.targets, classes=found.classes)

# --- tables -----------------------------------------------------------------------------------------------------------


def encoded(index):
    file = io.BytesIO()
    Image.fromarray(smooth(17, 23)).save(file, "PNG" if index % 3 else "JPEG", quality=95)
    return file.getvalue()


image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
features = {"img": {"_type": "Image"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
schema = pa.schema(
    [("img", image), ("id", pa.string()), ("label", pa.int64())],
    metadata={"huggingface": json.dumps({"info": {"features": features}})},
)
(out / "table" / "plain_text").mkdir(parents=True)
for part, count in (("train", 150), ("test", 20)):
    rows = [{"bytes": encoded(index), "path": f"{part}-{index}.png"} for index in range(count)]
    table = pa.table([rows, [str(index) for index in range(count)], [index % 2 for index in range(count)]], schema=schema)
    path = out / "table" / "plain_text" / f"{part}-00000-of-00001.parquet"
    pq.write_table(table, path, row_group_size=60)
    found = pq.read_table(path)
    pixels = [Image.open(io.BytesIO(row["bytes"])) for row in found["img"].to_pylist()]
    save(f"table-{part}", pixels, found["label"].to_pylist(), classes=["no", "yes"])

# --- real images ------------------------------------------------------------------------------------------------------

if len(sys.argv) > 2:
    folder_case("signs", sys.argv[2], transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64)]))
    folder_case("photos", sys.argv[3])
