#!/usr/bin/env python3
"""Measures a weights file with PyTorch, as an independent check of what Convoy trained.

Loads the safetensors file with Python's own safetensors package into a PyTorch twin of the model, runs it over a data
set's test images, and prints {"correct": n, "total": m, "accuracy": x, "loss": y} as JSON. It does not train.
"""

import argparse
import json
import sys

try:
    import torch
    from safetensors.torch import load_file
except ImportError as missing:
    sys.exit(f"torch_twin.py needs the Python packages torch, numpy and safetensors: {missing}")

import torchnet


def load_twin(model, weights):
    """The model with the file's weights; every name and shape has to fit."""
    net = torchnet.Net(model)
    net.load_state_dict(load_file(weights), strict=True)
    return net.eval()


def score(net, images, labels, model, batch):
    """How many images are classified rightly, and the mean loss."""
    correct, loss = 0, 0.0
    with torch.no_grad():
        for start in range(0, len(labels), batch):
            wanted = labels[start : start + batch]
            logits = net(torchnet.normalise(images[start : start + batch], model))
            correct += int((logits.argmax(dim=1) == wanted).sum())
            loss += float(torch.nn.functional.cross_entropy(logits.double(), wanted, reduction="sum"))
    return correct, loss / len(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a safetensors file with f32 weights")
    parser.add_argument("data", help="a folder of IDX files, plain or gz")
    parser.add_argument("--model", default="alexnet-fashion", help="a preset's name or a model file (%(default)s)")
    parser.add_argument("--split", choices=torchnet.SPLITS, default="test", help="split of the data set (%(default)s)")
    parser.add_argument("--batch", type=int, default=500, help="images per batch; affects only memory (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        model = torchnet.parse_model(torchnet.read_model(args.model))
        images, labels = torchnet.read_split(args.data, args.split)
        net = load_twin(model, args.weights)
    except (OSError, RuntimeError, ValueError, KeyError) as problem:
        sys.exit(f"torch_twin.py: {problem}")
    correct, loss = score(net, images, labels, model, args.batch)
    print(json.dumps({"correct": correct, "total": len(labels), "accuracy": correct / len(labels), "loss": loss}))


if __name__ == "__main__":
    main()
