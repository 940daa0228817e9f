"""The networks of models/*.toml, built in PyTorch, and the data that goes into them.

Three scripts share this module: make_golden.py (expected results), torch_twin.py (measures a trained weights file) and
benches/compare_pytorch.py (speed). It shares no code with Convoy: it is written only from docs/NUMERICS.md and the description of
model files, so that agreement between the two is evidence.
"""

import gzip
import math
import struct
import tomllib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]


# --- the model file ---------------------------------------------------------------------------------------------


def read_model(name_or_path):
    """The text of a model: a file's, or that of a preset in models/."""
    path = Path(name_or_path)
    if not path.is_file():
        path = ROOT / "models" / f"{name_or_path}.toml"
    if not path.is_file():
        presets = sorted(p.stem for p in (ROOT / "models").glob("*.toml"))
        raise FileNotFoundError(f"no model file {name_or_path!r}, and no preset of that name (there are {presets})")
    return path.read_text()


def parse_model(text):
    """The model as a dictionary, with the input's mean and std always there."""
    model = tomllib.loads(text)
    image = model["input"]
    image.setdefault("mean", [0.0] * image["channels"])
    image.setdefault("std", [1.0] * image["channels"])
    return model


def classes_of(model):
    """How many classes a model tells apart: the units of its last layer."""
    return model["layer"][-1]["units"]


# --- layers that PyTorch doesn't have in this form ------------------------------------------------------------------


class TowerLrn(nn.Module):
    """Local response normalisation within each tower's own channels, spelled out term by term."""

    def __init__(self, towers, size=5, alpha=1e-4, beta=0.75, k=2.0):
        super().__init__()
        self.towers, self.size, self.alpha, self.beta, self.k = towers, size, alpha, beta, k

    def forward(self, x):
        batch, channels, rows, columns = x.shape
        own = channels // self.towers
        x = x.reshape(batch * self.towers, own, rows, columns)
        padded = F.pad(x * x, (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        squares = sum(padded[:, j : j + own] for j in range(self.size))
        y = x / (self.k + self.alpha * squares) ** self.beta
        return y.reshape(batch, channels, rows, columns)


class BuiltInLrn(nn.Module):
    """The same by PyTorch's own layer, which divides alpha by the window's size; what one would write for speed."""

    def __init__(self, towers, size=5, alpha=1e-4, beta=0.75, k=2.0):
        super().__init__()
        self.towers, self.norm = towers, nn.LocalResponseNorm(size, alpha * size, beta, k)

    def forward(self, x):
        batch, channels, rows, columns = x.shape
        split = x.reshape(batch * self.towers, channels // self.towers, rows, columns)
        return self.norm(split).reshape(batch, channels, rows, columns)


class CountedDropout(nn.Module):
    """Dropout whose mask is a function of seed, layer, step and position. Set `seed` and `step` beforehand."""

    def __init__(self, name, p):
        super().__init__()
        self.name, self.p, self.seed, self.step = name, p, 0, 1

    def forward(self, x):
        if not self.training:
            return x
        kept = dropout_mask(self.seed, self.name, self.step, x.shape, self.p)
        return torch.where(torch.from_numpy(kept), x * (1.0 / (1.0 - self.p)), torch.zeros_like(x))


# --- the net ----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A model's layers in order; parameters are called as in the model's weights file, such as `conv2.weight`."""

    def __init__(self, model, counted_dropout=False, lrn=BuiltInLrn):
        super().__init__()
        self.order = []
        shape = (model["input"]["channels"], model["input"]["height"], model["input"]["width"])
        for position, layer in enumerate(model["layer"]):
            name = layer.get("name", f"{layer['kind']}{position}")
            if layer["kind"] == "linear" and len(shape) == 3:
                shape = (math.prod(shape),)
                self._append("flatten", nn.Flatten())
            module, shape = build_layer(layer, name, shape, model["towers"], counted_dropout, lrn)
            self._append(name, module)

    def _append(self, name, module):
        self.add_module(name, module)
        self.order.append(name)

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x

    def at(self, seed, step):
        """Tells every counted dropout which mask comes next."""
        for module in self.modules():
            if isinstance(module, CountedDropout):
                module.seed, module.step = seed, step
        return self


def build_layer(layer, name, shape, towers, counted_dropout, lrn):
    """One layer of a model file as a module, and the shape of what it puts out."""
    kind = layer["kind"]
    if kind == "conv":
        return build_conv(layer, shape)
    if kind == "linear":
        module = nn.Linear(shape[0], layer["units"], bias=layer.get("bias", True))
        return module, (layer["units"],)
    if kind in ("max_pool", "avg_pool"):
        return build_pool(layer, shape)
    if kind == "relu":
        return nn.ReLU(), shape
    if kind == "lrn":
        options = {key: layer[key] for key in ("size", "alpha", "beta", "k") if key in layer}
        return lrn(towers, **options), shape
    if kind == "dropout":
        return (CountedDropout(name, layer["p"]) if counted_dropout else nn.Dropout(layer["p"])), shape
    raise ValueError(f"layer {name!r} is of a kind that isn't known here: {kind!r}")


def build_conv(layer, shape):
    kernel, stride, pad = layer["kernel"], layer.get("stride", 1), layer.get("pad", 0)
    module = nn.Conv2d(
        shape[0],
        layer["filters"],
        kernel,
        stride=stride,
        padding=pad,
        groups=layer.get("groups", 1),
        bias=layer.get("bias", True),
    )
    return module, (layer["filters"], *(window_count(n, kernel, stride, pad) for n in shape[1:]))


def build_pool(layer, shape):
    kernel, stride, pad = layer["kernel"], layer["stride"], layer.get("pad", 0)
    pool = nn.MaxPool2d if layer["kind"] == "max_pool" else nn.AvgPool2d
    return pool(kernel, stride, pad), (shape[0], *(window_count(n, kernel, stride, pad) for n in shape[1:]))


def window_count(length, kernel, stride, pad):
    """How many windows fit along one axis, rounded down."""
    return (length + 2 * pad - kernel) // stride + 1


def initialise(net, model, seed):
    """Normal weights with the layer's std or He's, and the layer's bias or zero. Not Convoy's own random numbers."""
    torch.manual_seed(seed)
    inits = {layer["name"]: layer.get("init", {}) for layer in model["layer"] if "name" in layer}
    for name in net.order:
        module = getattr(net, name)
        if not hasattr(module, "weight"):
            continue
        he = math.sqrt(2.0 / module.weight[0].numel())
        nn.init.normal_(module.weight, 0.0, inits[name].get("std", he))
        if module.bias is not None:
            nn.init.constant_(module.bias, inits[name].get("bias", 0.0))


# --- random numbers ---------------------------------------------------------------------------------------------------

WORD = 0xFFFFFFFF


def philox(counter, key):
    """Philox4x32-10. `counter`: four arrays of u32 (or numbers) of one shape; `key`: two numbers. Gives four arrays."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = (int(k) for k in key)
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            second & np.uint64(WORD),
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            first & np.uint64(WORD),
        )
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return tuple(c.astype(np.uint32) for c in (c0, c1, c2, c3))


def check_philox():
    """The generator's published known answers."""
    ones, pi = [WORD] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    known = [
        ([0] * 4, [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ones, ones[:2], "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, [0xA4093822, 0x299F31D0], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for counter, key, expected in known:
        found = " ".join(f"{int(word):08x}" for word in philox(counter, key))
        assert found == expected, f"philox({counter}, {key}) gives {found} instead of {expected}"


def fnv1a(text):
    """The 64-bit FNV-1a hash of a text's UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def random_words(seed, purpose, count):
    """The first `count` words of a (seed, purpose), as docs/NUMERICS.md numbers them."""
    blocks, tag = np.arange(-(-count // 4), dtype=np.uint64), fnv1a(purpose)
    low, high = blocks & np.uint64(WORD), blocks >> np.uint64(32)
    tag_low, tag_high = (np.full_like(blocks, part) for part in (tag & WORD, tag >> 32))
    words = philox((low, high, tag_low, tag_high), (seed & WORD, seed >> 32))
    return np.stack(words, axis=1).reshape(-1)[:count]


def dropout_mask(seed, name, step, shape, p):
    """True where a unit is kept; `shape` is that of the whole batch's activations."""
    words = random_words(seed, f"dropout:{name}:{step}", math.prod(shape))
    return (words >= math.floor(p * 2**32)).reshape(tuple(shape))


# --- data -----------------------------------------------------------------------------------------------------------

SPLITS = {"train": "train", "test": "t10k"}


def read_idx(folder, stem):
    """The array in FOLDER/STEM-idxN-ubyte, plain or gz."""
    found = sorted(Path(folder).glob(f"{stem}-idx*-ubyte*"))
    if not found:
        raise FileNotFoundError(f"no {stem}-idx*-ubyte or {stem}-idx*-ubyte.gz in {folder}")
    raw = found[0].read_bytes()
    raw = gzip.decompress(raw) if found[0].suffix == ".gz" else raw
    dims = raw[3]
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_split(folder, split):
    """Images as bytes (sample, channel, row, column), and labels, of `train` or `test`."""
    images = read_idx(folder, f"{SPLITS[split]}-images")
    labels = read_idx(folder, f"{SPLITS[split]}-labels")
    if images.ndim == 3:
        images = images[:, None]
    return images, torch.from_numpy(labels.astype(np.int64))


def normalise(images, model, dtype=torch.float32):
    """Bytes to pixels, as the model's input says: computed in f64, then rounded once."""
    mean, std = (np.array(model["input"][key])[:, None] for key in ("mean", "std"))
    table = torch.from_numpy((np.arange(256) / 255.0 - mean) / std).to(dtype)
    bytes_ = torch.from_numpy(images.astype(np.int64))
    return torch.stack([table[channel][bytes_[:, channel]] for channel in range(bytes_.shape[1])], dim=1)
