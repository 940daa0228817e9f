"""Reads the event files in a folder with TensorBoard's own reader, and prints each chart as a list of steps and values, as JSON.

    python events.py FOLDER
"""

import json
import sys

# Not this file's folder.
sys.path.pop(0)

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
