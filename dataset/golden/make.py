"""Makes the JPEG files of this folder, and the pixels that Pillow decodes them to. Needs Pillow.

    python3 dataset/golden/make.py
"""

import pathlib

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
