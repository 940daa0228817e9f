"""Random weights of torchvision's AlexNet as its state dict, random images, and the logits that torchvision computes for them.

    python3 tests/torchvision/alexnet.py FOLDER

Writes FOLDER/weights.safetensors, FOLDER/images.npz (the keys of MedMNIST) and FOLDER/logits.safetensors.
"""

import pathlib
import sys

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file

IMAGES = 100

folder = pathlib.Path(sys.argv[1])
torch.manual_seed(1)
net = torchvision.models.alexnet(weights=None).eval()
# Activations keep their size from layer to layer, so that a difference would show.
for layer in net.modules():
    if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.normal_(layer.bias, std=0.1)
save_file(net.state_dict(), folder / "weights.safetensors")
images = np.random.default_rng(1).integers(0, 256, (IMAGES, 224, 224, 3), dtype=np.uint8)
labels = np.arange(IMAGES, dtype=np.uint8)
np.savez(folder / "images.npz", train_images=images[:1], train_labels=labels[:1], test_images=images, test_labels=labels)
pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
pixels = (pixels - mean[:, None, None]) / std[:, None, None]
with torch.no_grad():
    save_file({"logits": torch.cat([net(part) for part in pixels.split(20)])}, folder / "logits.safetensors")
