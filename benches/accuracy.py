"""Trains a model in PyTorch with the schedule, the augmentation and the initial distribution that Convoy has, and compares test accuracies with
those of Convoy's runs. Needs PyTorch, NumPy and Pillow.

    python3 benches/accuracy.py --data FOLDER [--seeds 1 2 3] --runs RUN...

The folder has `train` and `test`, with a folder of JPEG or PNG files of the model's size for each class. Each run is the folder of a finished
run; they differ in their seeds alone. The seeds of PyTorch are independent of them, because its random numbers are others. Ends with exit
code 1 if the means differ by more than a point.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "golden"))
import torchnet  # noqa: E402

WITHIN = 1.0


def images(folder):
    """All images, (image, channel, row, column), and labels, by the sorted names of classes and files."""
    pixels, labels = [], []
    for label, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(name.iterdir()):
            pixels.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
            labels.append(label)
    return np.stack(pixels), torch.tensor(labels)


def rate(base, step, steps):
    """One-cycle, as docs/NUMERICS.md has it. Steps count from 1."""
    warm, at = 0.3 * steps, step - 1
    if at < warm:
        return base * (0.04 + 0.96 * at / warm)
    return base * 0.5 * (1 + math.cos(math.pi * (at - warm) / (steps - warm)))


def augmented(pixels, pad, rng):
    """Each image is cropped out of a border of zeros, and mirrored in half of all cases."""
    count, channels, height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.empty_like(pixels)
    for index in range(count):
        top, left = rng.integers(2 * pad + 1, size=2)
        crop = padded[index, :, top : top + height, left : left + width]
        out[index] = crop[:, :, ::-1] if rng.integers(2) else crop
    return out


def trained(model, sets, options, seed):
    (pixels, labels), (test_pixels, test_labels) = sets
    net, rng = torchnet.Net(model), np.random.default_rng(seed)
    torchnet.initialise(net, model, seed)
    sgd = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    steps, step = options.epochs * math.ceil(len(labels) / options.batch), 0
    net.train()
    for epoch in range(options.epochs):
        order = rng.permutation(len(labels))
        for begin in range(0, len(order), options.batch):
            chosen = order[begin : begin + options.batch]
            step += 1
            for group in sgd.param_groups:
                group["lr"] = rate(options.lr, step, steps)
            inputs = torchnet.normalise(augmented(pixels[chosen], model["input"]["pad"], rng), model)
            sgd.zero_grad(set_to_none=True)
            F.cross_entropy(net(inputs), labels[chosen]).backward()
            sgd.step()
    net.eval()
    correct = 0
    with torch.no_grad():
        for begin in range(0, len(test_labels), 500):
            logits = net(torchnet.normalise(test_pixels[begin : begin + 500], model))
            correct += int((logits.argmax(1) == test_labels[begin : begin + 500]).sum())
    return 100.0 * correct / len(test_labels)


def described(name, values):
    spread = f" (standard deviation {np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
    print(f"{name:<8} {', '.join(f'{value:.2f}' for value in values)} %: mean {np.mean(values):.2f} %{spread}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True)
    options = parser.parse_args()
    records = [json.loads((run / "run.json").read_text()) for run in options.runs]
    jobs = [{key: value for key, value in record["configuration"].items() if key != "seed"} for record in records]
    first = jobs[0]
    assert all(job == first for job in jobs), "the runs differ in more than their seeds"
    assert first["schedule"] == "one-cycle", "only one-cycle is rewritten here"
    model = torchnet.parse_model(first["model"])
    known = {"channels", "height", "width", "mean", "std", "crop", "pad", "mirror"}
    image = model["input"]
    assert set(image) == known and image["crop"] == "random" and image["mirror"], "other transforms are not rewritten here"
    options.batch, options.lr = first["batch"], first["lr"]
    options.momentum, options.weight_decay = first["momentum"], first["weight_decay"]
    sets = [images(options.data / part) for part in ("train", "test")]
    steps_per_epoch = math.ceil(len(sets[0][1]) / options.batch)
    options.epochs = round(records[0]["running"]["last_step"] / steps_per_epoch)
    ours = [100.0 * record["final"]["test_accuracy"] for record in records]
    described("Convoy", ours)
    theirs = []
    for seed in options.seeds:
        began = time.perf_counter()
        theirs.append(trained(model, sets, options, seed))
        print(f"PyTorch, seed {seed}: {theirs[-1]:.2f} % after {time.perf_counter() - began:.0f} s", flush=True)
    described("PyTorch", theirs)
    difference = float(np.mean(ours) - np.mean(theirs))
    print(f"Convoy minus PyTorch: {difference:+.2f} points (limit: {WITHIN} either way)")
    sys.exit(abs(difference) > WITHIN)


if __name__ == "__main__":
    main()
