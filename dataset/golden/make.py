"""Makes the JPEG files of this folder, the pixels that Pillow decodes them to, NumPy archives, pickles and
Parquet files. Needs Pillow, NumPy and pyarrow.

    python3 dataset/golden/make.py
"""

import io
import json
import pathlib
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

here = pathlib.Path(__file__).parent
Image.new("L", (8, 8), 200).save(here / "grey.jpg", quality=50)
# Smooth, so that enlarged chroma differs little between decoders.
pixels = [(5 * x, 9 * y, 255 - 4 * x - 2 * y) for y in range(24) for x in range(40)]
colour = Image.new("RGB", (40, 24))
colour.putdata(pixels)
colour.save(here / "colour.jpg", quality=90, subsampling="4:2:0")
odd = colour.crop((0, 0, 37, 21))
odd.save(here / "progressive.jpg", quality=85, subsampling="4:2:2", progressive=True)
(here / "colour.rgb").write_bytes(Image.open(here / "colour.jpg").convert("RGB").tobytes())

# Arrays with the keys of MedMNIST: colour, compressed, with labels in a column; and grey, not compressed, without test images.
count = np.arange(6 * 4 * 5 * 3) % 251
colours = count.astype(np.uint8).reshape(6, 4, 5, 3)
labels = np.array([0, 2, 1, 2, 0, 1])
np.savez_compressed(
    here / "colour.npz",
    train_images=colours,
    train_labels=labels.astype(np.uint8)[:, None],
    val_images=colours[:1],
    val_labels=labels[:1].astype(np.uint8)[:, None],
    test_images=colours[::-1][:2],
    test_labels=labels[::-1][:2].astype(np.uint8)[:, None],
)
greys = colours[..., 0]
np.savez(
    here / "grey.npz",
    train_images=greys,
    train_labels=labels.astype(">i8"),
    val_images=greys[3:5],
    val_labels=labels[3:5].astype(np.int16),
)
# What can't be used: another order, another type, several labels for an image.
np.savez(
    here / "wrong.npz",
    train_images=np.asfortranarray(greys),
    train_labels=labels,
    test_images=greys.astype(np.float32),
    test_labels=np.stack([labels, labels], 1),
)

# Values and an array of bytes, as the files of CIFAR have them, by each protocol of pickles.
array = np.array([[0, 10, 255], [3, 4, 5]], dtype=np.uint8)
value = {b"data": array, b"labels": [1, 300], "name": "set", "none": (None, True, -5)}
for protocol in range(2, 6):
    (here / f"protocol{protocol}.pickle").write_bytes(pickle.dumps(value, protocol))


# Parquet files as the library datasets writes them: images of the bytes 0, 1, 2... as PNG, with paths and names of classes, and without.
def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def table(name, images, labels, paths=None, classes=None, kind=pa.int64()):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    feature = {"names": classes, "_type": "ClassLabel"} if classes else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": feature}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", image), ("label", kind)], metadata=metadata)
    structs = [{"bytes": png(pixels), "path": paths and paths[index]} for index, pixels in enumerate(images)]
    pq.write_table(pa.table([structs, labels], schema=schema), here / f"{name}.parquet", row_group_size=4)


pixels = np.arange(6 * 4 * 5 * 3) % 251
pixels = pixels.astype(np.uint8).reshape(6, 4, 5, 3)
names = ["cat", "dog", "owl"]
table("train", pixels, [0, 2, 1, 2, 0, 1], [f"{letter}.png" for letter in "abcdef"], names)
table("test", pixels[:2], [1, 0])
table("other-classes", pixels[:2], [1, 0], classes=["dog", "cat", "owl"])
table("text-label", pixels[:2], ["cat", "dog"], kind=pa.string())
table("null-label", pixels[:2], [1, None])
pq.write_table(pa.table({"label": [1], "text": ["a"]}), here / "no-image.parquet")
