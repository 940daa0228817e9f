"""One run of PyTorch for compare_pytorch.py: trains some steps in one of several modes, and prints the seconds of each step.

    eager, compiled   one process with one thread per core; the second uses torch.compile's default mode
    gloo              one process per tower with one thread each, which exchange activations and their gradients as Convoy's
                      workers do: all channels before a layer that reads them all

Reads the description of the run as JSON from standard input, and prints a JSON list. Accuracy is not measured.
"""

import json
import math
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import torchnet  # noqa: E402

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


# --- a tower of its own -------------------------------------------------------------------------------------------------


class Gather(torch.autograd.Function):
    """All towers' channels; back, the sum of all towers' gradients of the own ones."""

    @staticmethod
    def forward(ctx, own, widths, sums):
        ctx.widths, ctx.sums = widths, sums
        parts = [own.new_empty((own.shape[0], width, *own.shape[2:])) for width in widths]
        if len(set(widths)) == 1:
            dist.all_gather(parts, own.contiguous())
        else:
            uneven_gather(parts, own.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.sums:
            gradient = gradient.contiguous()
            dist.all_reduce(gradient)
        first = sum(ctx.widths[: dist.get_rank()])
        return gradient[:, first : first + ctx.widths[dist.get_rank()]], None, None


def uneven_gather(parts, own):
    """Gloo gathers equal shapes alone."""
    for rank, part in enumerate(parts):
        if rank == dist.get_rank():
            part.copy_(own)
        dist.broadcast(part, rank)


class Exchange(nn.Module):
    def __init__(self, widths, sums=True):
        super().__init__()
        self.widths, self.sums = widths, sums

    def forward(self, x):
        return Gather.apply(x, self.widths, self.sums)


def share(whole, towers):
    """The first towers get one more."""
    return [whole // towers + (tower < whole % towers) for tower in range(towers)]


def tower_net(model, rank):
    """One tower's layers, with exchanges before those that see all channels."""
    towers, image = model["towers"], model["input"]
    shape, modules = (image["channels"], image["height"], image["width"]), []
    for position, layer in enumerate(model["layer"]):
        kind, widths = layer["kind"], share(shape[0], towers)
        if kind == "conv":
            own, filters, groups = shape[0], share(layer["filters"], towers), layer.get("groups", 1)
            if position == 0 and groups > 1:
                raise SystemExit("gloo: a grouped first layer is not built here")
            if position > 0 and groups == 1:
                modules.append(Exchange(widths))
            elif position > 0:
                own = widths[rank]
            kernel, stride, pad = layer["kernel"], layer.get("stride", 1), layer.get("pad", 0)
            groups = max(1, groups // towers)
            modules.append(nn.Conv2d(own, filters[rank], kernel, stride, pad, groups=groups))
            sides = (torchnet.window_count(n, kernel, stride, pad) for n in shape[1:])
            shape = (layer["filters"], *sides)
        elif kind == "linear":
            modules.append(Exchange(widths))
            if len(shape) == 3:
                modules.append(nn.Flatten())
            modules.append(nn.Linear(math.prod(shape), share(layer["units"], towers)[rank]))
            shape = (layer["units"],)
        else:
            module, shape = torchnet.build_layer(layer, str(position), shape, 1, False, torchnet.BuiltInLrn)
            modules.append(module)
    # The loss is computed by every tower on all logits: each has the whole gradient already.
    modules.append(Exchange(share(shape[0], towers), sums=False))
    return nn.Sequential(*modules)


# --- a turn -------------------------------------------------------------------------------------------------------------


def load(turn, model):
    """All training pixels as floats, and labels; a few batches of noise if the data is synthetic. Alike in every process."""
    torch.manual_seed(turn["seed"])
    if turn["data"] != "synthetic":
        images, labels = torchnet.read_split(turn["data"], "train")
        return torchnet.normalise(images, model), labels
    image, count = model["input"], 4 * turn["batch"]
    noise = torch.randint(256, (count, image["channels"], image["height"], image["width"])).numpy()
    return torchnet.normalise(noise, model), torch.arange(count) % torchnet.classes_of(model)


def trained(net, compute, turn, model):
    """Seconds of each step."""
    layout = LAYOUTS[turn["layout"]]
    net.train().to(memory_format=layout)
    pixels, labels = load(turn, model)
    pixels = pixels.contiguous(memory_format=layout)
    sgd = torch.optim.SGD(
        net.parameters(), lr=turn["lr"], momentum=turn["momentum"], weight_decay=turn["weight_decay"]
    )
    took = []
    torch.manual_seed(turn["seed"])
    while len(took) < turn["steps"]:
        for chosen in torch.randperm(len(labels)).split(turn["batch"])[: turn["steps"] - len(took)]:
            began = time.perf_counter()
            sgd.zero_grad(set_to_none=True)
            logits = compute(pixels[chosen].contiguous(memory_format=layout))
            loss = F.cross_entropy(logits, labels[chosen])
            loss.backward()
            sgd.step()
            loss.item()
            took.append(time.perf_counter() - began)
    return took


def one_process(turn, model):
    torch.set_num_threads(turn["cores"])
    net = torchnet.Net(model)
    torchnet.initialise(net, model, seed=turn["seed"])
    return trained(net, torch.compile(net) if turn["way"] == "compiled" else net, turn, model)


def one_tower(rank, turn, model, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=model["towers"])
    torch.manual_seed(turn["seed"] + rank)
    net = tower_net(model, rank)
    took = trained(net, net, turn, model)
    if rank == 0:
        results.put(took)
    dist.barrier()
    dist.destroy_process_group()


def a_process_a_tower(turn, model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    started = torch.multiprocessing.spawn(one_tower, (turn, model, port, results), nprocs=model["towers"], join=False)
    while results.empty():
        started.join(timeout=0.2)  # raises what a tower raised
    took = results.get()
    while not started.join():
        pass
    return took


def main():
    turn = json.load(sys.stdin)
    model = torchnet.parse_model(torchnet.read_model(turn["model"]))
    run = a_process_a_tower if turn["way"] == "gloo" else one_process
    print(json.dumps(run(turn, model)))


if __name__ == "__main__":
    main()
