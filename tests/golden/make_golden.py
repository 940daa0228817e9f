#!/usr/bin/env python3
"""Writes the golden files: expected results of training, computed by PyTorch in f64 on a CPU.

Data and initial weights follow from integer formulas (see README.md in this folder), so a case needs no binary files. Each case
also runs in f32. The script chooses salts for which rounding does not change the branch of a ReLU or the position of a maximum.
Golden files are compared with a tolerance. Other tests check equality of bits.

    make_golden.py [CASE...]              writes cases/CASE.json, by default for all cases
    make_golden.py --check [CASE...]      recomputes, and compares with the existing files
    make_golden.py --inputs DIR CASE      writes the IDX files, model.toml and init.safetensors of a case, for manual tests
"""

import argparse
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import torchnet
from cases import CASES

FOLDER = Path(__file__).resolve().parent / "cases"
MOMENTUM = 0.9
SALTS = 2000
LIMITS = {"logits": 2e-5, "gradients": 2e-5, "losses": 2e-4}
SHAKE = 5e-7


# --- the formulas of README.md ------------------------------------------------------------------------------------


def mix(value):
    """MurmurHash3's 32-bit finaliser, over an array of u32."""
    value = value ^ (value >> np.uint32(16))
    value = value * np.uint32(0x85EBCA6B)
    value = value ^ (value >> np.uint32(13))
    value = value * np.uint32(0xC2B2AE35)
    return value ^ (value >> np.uint32(16))


def stream_words(salt, stream, count):
    """The first `count` words of a stream."""
    start = mix(np.array([salt * 1000 + stream], np.uint32))
    return mix(np.arange(count, dtype=np.uint32) + start)


def labels_of(count, classes):
    return (np.arange(count) * 7 + 3) % classes


def images_of(model, salt, stream, count):
    """Noise in the low seven bits; in the high one stripes, whose slope tells the label."""
    image = model["input"]
    shape = (count, image["channels"], image["height"], image["width"])
    noise = (stream_words(salt, stream, math.prod(shape)) >> np.uint32(25)).reshape(shape)
    label = labels_of(count, torchnet.classes_of(model))[:, None, None, None]
    channel, row, column = (np.arange(n) for n in shape[1:])
    stripe = (label + 1) * row[:, None] + column + 2 * channel[:, None, None]
    return (noise + 128 * (stripe // 4 % 2)).astype(np.uint8)


def weight_exponent(name, tensor):
    """The power of two that brings integers of -1000 to 1000 near He's standard deviation; biases are small.

    Linear layers get half of it, so that the first losses are near the logarithm of the number of classes.
    """
    if name.endswith(".bias"):
        return -13
    he = math.sqrt(2.0 / tensor[0].numel())
    return round(math.log2(he / 577.0)) - (tensor.ndim == 2)


def fill_tensor(tensor, name, index, salt):
    """One tensor's weights; `index` is its place among all names in order."""
    integers = (stream_words(salt, 2 + index, tensor.numel()) % np.uint32(2001)).astype(np.int32) - 1000
    scale = 2.0 ** weight_exponent(name, tensor)
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(integers * scale).reshape(tensor.shape))


def parameter_rows(net, salts):
    """What a reader needs to make the weights again."""
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "exponent": weight_exponent(name, tensor),
            "salt": salts[name.rpartition(".")[0]],
        }
        for name, tensor in sorted(net.state_dict().items())
    ]


def learning_rate(case, step):
    """The rate of a step, counted from 1, of a schedule that spans all the case's steps."""
    kind, _, numbers = case["schedule"].partition(":")
    rate, span, at = case["lr"], case["steps"], step - 1
    if kind == "constant":
        return rate
    if kind == "step":
        every, factor = numbers.split(":")
        epoch_steps = math.ceil(case["train_images"] / case["batch"])
        return rate * float(factor) ** (at // epoch_steps // int(every))
    if kind == "one-cycle":
        warm = 0.3 * span
        if at < warm:
            return rate * (0.04 + 0.96 * (at / warm))
        at, span = at - warm, span - warm
    return rate * 0.5 * (1 + math.cos(math.pi * (at / span)))


# --- clear of the kinks --------------------------------------------------------------------------------------------


class Cramped(Exception):
    """No weights of a layer will do with what came before it."""


def smallest_distance(module, x):
    """The least distance to a ReLU's zero, or between a window's maximum and the runner-up."""
    if isinstance(module, nn.ReLU):
        return float(x.abs().min())
    padded = F.pad(x, [module.padding] * 4, value=-math.inf)
    windows = padded.unfold(2, module.kernel_size, module.stride).unfold(3, module.kernel_size, module.stride)
    windows = windows.flatten(4)
    top = windows.amax(dim=4, keepdim=True)
    tied = ((windows == top).sum(dim=4, keepdim=True) > 1) & (top != 0)
    below = torch.where(windows == top, -math.inf, windows).amax(dim=4, keepdim=True)
    return 0.0 if bool(tied.any()) else float((top - below).min())


def blocks_of(net):
    """The net's layers, cut before each that has weights; what has none at the front is a block of its own."""
    blocks = [[]]
    for name in net.order:
        if hasattr(getattr(net, name), "weight"):
            blocks.append([])
        blocks[-1].append(name)
    return blocks


def through(net, block, x):
    """Runs a block; gives what came in at each kinked layer, and what came out at the end."""
    kinks = []
    for name in block:
        module = getattr(net, name)
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            kinks.append((module, x))
        x = module(x)
    return kinks, x


def f32_errors(kinks, f32_kinks):
    """The largest error that f32 made in what came in at each kinked layer."""
    return [max(float((y.double() - x).abs().max()), 1e-300) for (_, x), (_, y) in zip(kinks, f32_kinks)]


def distance_ratio(kinks, errors):
    """The least distance from a kink, as a multiple of the error in the same layer."""
    return min((smallest_distance(*kink) / error for kink, error in zip(kinks, errors)), default=math.inf)


def clear_block(wide, narrow, block, inputs, wanted):
    """Takes the first salt with which a block keeps clear of its kinks; gives it, how clear, and the outputs."""
    errors = []
    for salt in range(1, SALTS + 1):
        wide.fill_layer(block, salt)
        narrow.fill_layer(block, salt)
        f32_kinks, f32_output = through(narrow.net, block, inputs[1])
        if errors and distance_ratio(f32_kinks, errors) < wanted / 2:
            continue  # hopeless, to judge by an earlier salt's errors; f64 is slow
        kinks, output = through(wide.net, block, inputs[0])
        errors = f32_errors(kinks, f32_kinks)
        ratio = distance_ratio(kinks, errors)
        if ratio >= wanted:
            return salt, ratio, [output, f32_output]
    raise Cramped(f"no salt up to {SALTS} keeps {block[0]} clear of its kinks")


def clear_salts(wide, narrow):
    """Goes through the net once, block by block, at step 1; gives a salt for each layer with weights, and how clear."""
    salts, least = {}, math.inf
    inputs = [run.pixels[run.batch_of(1)] for run in (wide, narrow)]
    for run in (wide, narrow):
        run.net.train().at(run.case["seed"], 1)
    with torch.no_grad():
        for block in blocks_of(wide.net):
            salt, ratio, inputs = clear_block(wide, narrow, block, inputs, wide.case["kink_ratio"])
            salts, least = salts | {name: salt for name in block[:1]}, min(least, ratio)
    return salts, least


# --- a case's run ------------------------------------------------------------------------------------------------


class Run:
    """One case in one precision."""

    def __init__(self, case, model, salt, dtype):
        self.case, self.model = case, model
        self.net = torchnet.Net(model, counted_dropout=True, lrn=torchnet.TowerLrn).to(dtype)
        self.names = sorted(self.net.state_dict())
        classes = torchnet.classes_of(model)
        self.pixels, self.test_pixels = (
            torchnet.normalise(images_of(model, salt, stream, case[key]), model, dtype)
            for stream, key in ((0, "train_images"), (1, "test_images"))
        )
        self.labels = torch.from_numpy(labels_of(case["train_images"], classes))

    def fill_layer(self, block, salt):
        """The formula's weights for the layer that a block begins with."""
        for index, name in enumerate(self.names):
            if name.rpartition(".")[0] in block[:1]:
                fill_tensor(self.net.get_parameter(name), name, index, salt)

    def fill(self, rows):
        """The formula's weights for every tensor, with the salts that a golden file gives."""
        for index, row in enumerate(rows):
            fill_tensor(self.net.get_parameter(row["name"]), row["name"], index, row["salt"])

    def shake(self, seed):
        """Changes every weight by some units in its last place; seed 0 changes nothing."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in self.net.parameters() if seed else ():
                tensor.mul_(1 + SHAKE * torch.randn_like(tensor))

    def batch_of(self, step):
        """The images of a step in sequential order; an epoch's last batch may be smaller."""
        size, count = self.case["batch"], self.case["train_images"]
        start = (step - 1) % math.ceil(count / size) * size
        return slice(start, min(start + size, count))

    def forward(self, step):
        """The loss of a step in training mode."""
        chosen = self.batch_of(step)
        self.net.train().at(self.case["seed"], step)
        return F.cross_entropy(self.net(self.pixels[chosen]), self.labels[chosen])

    def test_logits(self):
        with torch.no_grad():
            return self.net.eval()(self.test_pixels)

    def results(self):
        """The test images' logits before any step; then every step's loss, and the first step's gradients."""
        logits = self.test_logits()
        return logits, *self.train()

    def train(self):
        """All the steps; gives every step's loss, and the gradients of the first without weight decay."""
        sgd = torch.optim.SGD(
            self.net.parameters(), lr=1.0, momentum=MOMENTUM, weight_decay=self.case["weight_decay"]
        )
        losses, gradients = [], None
        for step in range(1, self.case["steps"] + 1):
            sgd.zero_grad()
            loss = self.forward(step)
            loss.backward()
            if gradients is None:
                gradients = {name: p.grad.clone() for name, p in self.net.named_parameters()}
            sgd.param_groups[0]["lr"] = learning_rate(self.case, step)
            sgd.step()
            losses.append(loss.item())
        return losses, gradients


def search(case, model):
    """Salts with which f32 stays near f64, clear of all kinks at step 1; and what f64 comes to with them."""
    for salt in range(1, SALTS + 1):
        wide, narrow = (Run(case, model, salt, dtype) for dtype in (torch.float64, torch.float32))
        try:
            salts, ratio = clear_salts(wide, narrow)
        except Cramped as problem:
            print(f"{case['name']}: not salt {salt}: {problem}", file=sys.stderr)
            continue
        rows = parameter_rows(wide.net, salts)
        exact = wide.results()
        differs = f32_differences(narrow, rows, exact)
        if all(differs[key] <= limit for key, limit in LIMITS.items()):
            return salt, rows, exact, differs | {"kink_ratio": ratio}
        print(f"{case['name']}: not salt {salt}, f32 strays from f64: {differs}", file=sys.stderr)
    raise SystemExit(f"{case['name']}: no salt up to {SALTS} keeps f32 near f64")


def f32_differences(narrow, rows, exact):
    """The furthest that f32 strays, over one plain run and several that start from shaken weights.

    The shaking is about what another order of summation would do. It finds jobs in which a little rounding grows.
    """
    furthest_yet = {}
    for shake in range(narrow.case["shakes"] + 1):
        narrow.fill(rows)
        narrow.shake(shake)
        for key, value in differences(exact, narrow.results()).items():
            furthest_yet[key] = max(value, furthest_yet.get(key, 0.0))
    return furthest_yet


def again(case, model, golden):
    """What f64 comes to with the salts of a golden file."""
    wide = Run(case, model, golden["salt"], torch.float64)
    wide.fill(golden["parameters"])
    salts = {row["name"].rpartition(".")[0]: row["salt"] for row in golden["parameters"]}
    return golden["salt"], parameter_rows(wide.net, salts), wide.results(), golden["f32_differs_by"]


def differences(exact, rounded):
    """How far f32 is from f64: logits and gradients as a share of their tensor's largest value, losses as they are."""
    (logits, losses, gradients), (f32_logits, f32_losses, f32_gradients) = exact, rounded
    return {
        "logits": furthest(logits, f32_logits),
        "gradients": max(furthest(gradients[name], f32_gradients[name]) for name in gradients),
        "losses": max(abs(a - b) for a, b in zip(losses, f32_losses)),
    }


def furthest(exact, rounded):
    """The largest difference, as a share of the largest value."""
    return float((rounded.double() - exact).abs().max() / exact.abs().max())


def short(value):
    return float(f"{value:.8g}")


def summary(tensor, whole_up_to):
    """A gradient in brief: whole if it is small, else 64 samples at fixed places; and sums over all of it."""
    flat = tensor.flatten()
    brief = {
        "sum": short(flat.sum()),
        "abs_sum": short(flat.abs().sum()),
        "norm": short(flat.norm()),
        "max_abs": short(flat.abs().max()),
    }
    if len(flat) <= whole_up_to:
        return brief | {"values": [short(v) for v in flat.tolist()]}
    places = (mix(np.arange(64, dtype=np.uint32)).astype(np.int64) % len(flat)).tolist()
    return brief | {"samples": [short(v) for v in flat[places].tolist()]}


def make(case, kept=None):
    """All that a golden file says about a case; with the salts of the file that is kept, if there is one."""
    text = case.get("model") or torchnet.read_model(case["preset"])
    model = torchnet.parse_model(text)
    found = again(case, model, kept) if kept else search(case, model)
    salt, parameters, (logits, losses, gradients), differs = found
    settings = ("train_images", "test_images", "batch", "lr", "weight_decay", "schedule", "seed", "steps")
    return {
        "name": case["name"],
        "made_with": f"PyTorch {torch.__version__}, float64, CPU",
        **({"model": case["model"]} if "model" in case else {"preset": case["preset"]}),
        "salt": salt,
        **{key: case[key] for key in settings},
        "momentum": MOMENTUM,
        "order": "sequential",
        "parameters": parameters,
        "losses": [short(loss) for loss in losses],
        "test_logits": [[short(v) for v in row] for row in logits.tolist()],
        "gradients": {name: summary(gradients[name], case["whole_up_to"]) for name in sorted(gradients)},
        "f32_differs_by": {key: float(f"{value:.2g}") for key, value in differs.items()},
    }


# --- files ----------------------------------------------------------------------------------------------------------


def write(golden):
    """One key a line, so that a change shows in a diff; long lists stay on their line."""
    lines = []
    for key, value in golden.items():
        if key in ("parameters", "gradients"):
            items = value.items() if isinstance(value, dict) else ((None, row) for row in value)
            rows = [("" if name is None else f"{json.dumps(name)}: ") + json.dumps(row) for name, row in items]
            opening, closing = "{}" if isinstance(value, dict) else "[]"
            lines.append(f" {json.dumps(key)}: {opening}\n  " + ",\n  ".join(rows) + f"\n {closing}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    (FOLDER / f"{golden['name']}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def alike(found, kept, path=""):
    """Fails where two golden files differ by more than another CPU's rounding in f64 may make them."""
    if path in ("/made_with", "/f32_differs_by"):
        return
    if isinstance(kept, dict):
        assert found.keys() == kept.keys(), f"{path}: {sorted(found)} instead of {sorted(kept)}"
        for key in kept:
            alike(found[key], kept[key], f"{path}/{key}")
    elif isinstance(kept, list):
        assert len(found) == len(kept), f"{path}: {len(found)} entries instead of {len(kept)}"
        for place, pair in enumerate(zip(found, kept)):
            alike(*pair, f"{path}/{place}")
    elif isinstance(kept, float):
        assert math.isclose(found, kept, rel_tol=1e-6, abs_tol=1e-10), f"{path}: {found} instead of {kept}"
    else:
        assert found == kept, f"{path}: {found!r} instead of {kept!r}"


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def write_inputs(case, folder):
    """What the command line needs in order to run a case: data, model and initial weights."""
    from safetensors.torch import save_file

    golden = json.loads((FOLDER / f"{case['name']}.json").read_text())
    text = case.get("model") or torchnet.read_model(case["preset"])
    model, classes = torchnet.parse_model(text), torchnet.classes_of(torchnet.parse_model(text))
    folder.mkdir(parents=True, exist_ok=True)
    for stream, (split, stem) in enumerate(torchnet.SPLITS.items()):
        count = case[f"{split}_images"]
        images = images_of(model, golden["salt"], stream, count)
        images = images[:, 0] if images.shape[1] == 1 else images
        write_idx(folder / f"{stem}-images-idx{images.ndim}-ubyte", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", labels_of(count, classes))
    run = Run(case, model, golden["salt"], torch.float32)
    run.fill(golden["parameters"])
    save_file(run.net.state_dict(), folder / "init.safetensors")
    (folder / "model.toml").write_text(text)


def check_foundations():
    """What the expectations rest on: the generator's known answers, and LRN by hand against PyTorch's."""
    torchnet.check_philox()
    x = torch.linspace(-3, 3, 2 * 12 * 4, dtype=torch.float64).reshape(2, 12, 2, 2)
    for towers, size in ((1, 5), (2, 4), (3, 9)):
        by_hand, built_in = (kind(towers, size, 0.3, 0.6, 1.2) for kind in (torchnet.TowerLrn, torchnet.BuiltInLrn))
        assert torch.allclose(by_hand(x), built_in(x), rtol=1e-12), f"LRN of {towers} towers, size {size}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--inputs", type=Path, metavar="DIR", help="write one case's data, model and weights here")
    args = parser.parse_args()
    unknown = set(args.names) - {case["name"] for case in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(c['name'] for c in CASES)}")
    torch.set_num_threads(1)
    chosen = [case for case in CASES if not args.names or case["name"] in args.names]
    if args.inputs:
        if len(chosen) != 1:
            parser.error("--inputs takes exactly one case")
        return write_inputs(chosen[0], args.inputs)
    check_foundations()
    FOLDER.mkdir(exist_ok=True)
    for case in chosen:
        kept = json.loads((FOLDER / f"{case['name']}.json").read_text()) if args.check else None
        golden = make(case, kept)
        alike(golden, kept) if args.check else write(golden)
        losses = golden["losses"]
        print(f"{case['name']:22} loss {losses[0]:.4f} -> {losses[-1]:.4f}  {golden['f32_differs_by']}", flush=True)


if __name__ == "__main__":
    main()
