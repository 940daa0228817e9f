"""What it costs to decode images during training, beside images that stay in memory. Needs Pillow and NumPy.

    python3 benches/feeder.py --convoy target/release/convoy [--images 1300] [--rounds 3] [--steps 8]

Makes JPEG files of 500 x 375, trains `alexnet` on them at batch 128 in turns, with all decoded images in memory and with none, and
compares the steps. Decoding takes processor time, which a machine whose cores all compute does not have to spare. So the figure that counts
is what a step takes beyond its share of that time. Pillow, and torchvision if it is there, decode and scale the same files in the same run.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
from PIL import Image

CLASSES = 10


def make(folder, count):
    """Files with smooth shapes and some noise, of about 50 KB each."""
    rng = np.random.default_rng(1)
    resized = lambda values: np.asarray(Image.fromarray(values).resize((500, 375), Image.BICUBIC)).astype(int)
    for number in range(count):
        shapes = resized(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        noise = resized(rng.integers(0, 60, (94, 125, 3), dtype=np.uint8)) - 30
        place = folder / f"class-{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        image = np.clip(shapes + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(place / f"{number:05}.jpg", quality=90)


def trained(options, place, memory, number):
    """The median step in milliseconds, the record of the run, and its hash."""
    out = place / f"run-{number}"
    command = [options.convoy, "train", "--model", "alexnet", "--classes", "auto", "--data", place / "images", "--out", out]
    command += ["--batch", "128", "--steps", str(options.steps), "--workers", "1", "--trace", "all", "--data-memory", memory]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    record = json.loads((out / "run.json").read_text())
    account = json.loads(subprocess.check_output([options.convoy, "trace", out, "--json"]))
    return account["step_ns"] / 1e6, record


def rate_of(prepare, files):
    """Images a second of one core: read, decoded, and scaled to a shorter side of 256."""
    began = time.process_time()
    for file in files:
        prepare(file)
    return len(files) / (time.process_time() - began)


def peers():
    """What other libraries do to a file, by their names."""
    found = {"Pillow": lambda file: Image.open(file).convert("RGB").resize((341, 256), Image.BILINEAR).tobytes()}
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2.functional import resize
    except ImportError:
        return found
    torch.set_num_threads(1)
    found["torchvision"] = lambda file: resize(decode_image(str(file), ImageReadMode.RGB), [256], antialias=True)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--convoy", default="target/release/convoy")
    parser.add_argument("--images", type=int, default=1300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        make(place / "images", options.images)
        rounds, hashes, rates = [], set(), []
        for number in range(options.rounds):
            in_memory, kept = trained(options, place, "64G", f"memory-{number}")
            on_disk, left = trained(options, place, "0", f"disk-{number}")
            hashes |= {run["final"]["weights_sha256"] for run in (kept, left)}
            spent = lambda run: sum(run["preparing"][f"{stage}_seconds"] for stage in ("read", "decode", "scale"))
            rates.append(options.images / spent(kept))
            # Both decode all images before they begin.
            a_step = (spent(left) - spent(kept)) / options.steps / os.cpu_count() * 1e3
            rounds.append((in_memory, on_disk, a_step, left["preparing"]["image_wait_seconds"]))
            print(
                f"round {number + 1}: a step takes {in_memory:.0f} ms from memory and {on_disk:.0f} ms from files; decoding takes "
                f"{a_step:.0f} ms of all cores a step; the job waited {rounds[-1][3] * 1e3:.0f} ms for images in all"
            )
        beyond = [(on_disk - a_step) / in_memory - 1 for in_memory, on_disk, a_step, _ in rounds]
        whole = [on_disk / in_memory - 1 for in_memory, on_disk, *_ in rounds]
        print(f"from files, a step takes {statistics.median(whole):+.1%}; beyond the time for decoding, {statistics.median(beyond):+.1%}")
        rate, files = statistics.median(rates), sorted((place / "images").glob("*/*.jpg"))[:500]
        print(f"a core decodes and scales {rate:.0f} images/s")
        for name, prepare in peers().items():
            peer = rate_of(prepare, files)
            print(f"{name}: {peer:.0f} images/s, so Convoy does {rate / peer:.2f} times as many")
        assert len(hashes) == 1, hashes
        print("the weights are the same to the bit")


main()
