"""Opens an ONNX file with ONNX's own checker and with onnxruntime, and compares its logits with those in a safetensors file.

    python onnx.py FILE.onnx IMAGES LOGITS.safetensors

IMAGES is an IDX file. Prints one JSON object: the names of inputs and outputs, the largest difference, and the largest logit.
"""

import json
import struct
import sys

# Not this file.
sys.path.pop(0)

import numpy
import onnx
import onnxruntime
from safetensors.numpy import load_file

path, images, logits = sys.argv[1:]
onnx.checker.check_model(onnx.load(path), full_check=True)
with open(images, "rb") as file:
    data = file.read()
shape = struct.unpack_from(f">{data[3]}I", data, 4)
pixels = numpy.frombuffer(data, numpy.uint8, offset=4 + 4 * data[3]).reshape(shape)
if len(shape) == 3:
    pixels = pixels[:, None]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(theirs,) = session.run(None, {session.get_inputs()[0].name: pixels})
ours = load_file(logits)["logits"]
assert theirs.shape == ours.shape, f"{theirs.shape} and {ours.shape}"
print(
    json.dumps(
        {
            "inputs": [value.name for value in session.get_inputs()],
            "outputs": [value.name for value in session.get_outputs()],
            "properties": session.get_modelmeta().custom_metadata_map,
            "images": len(ours),
            "difference": float(numpy.abs(theirs.astype(numpy.float64) - ours).max()),
            "largest": float(numpy.abs(ours).max()),
        }
    )
)
