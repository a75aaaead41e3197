"""Classify one action with model.onnx of `python -m export --merge`. Needs numpy and onnxruntime only.

python examples/classify_onnx.py artifact/model.onnx views.npy      # views: uint8 [V, 3, T, H, W], RGB
"""

import json
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map  # which frames to cut, and what the outputs mean
labels, frames = json.loads(metadata["labels"]), json.loads(metadata["clip"])["frame_indices"]
views = np.load(sys.argv[2])
names = ["ACTION_PROBABILITIES", "OFFENCE_SEVERITY_PROBABILITIES", "VIEW_WEIGHTS"]
action, severity, weights = session.run(names, {"VIEWS": views})
print(f"{len(views)} views of the frames {frames} at 25 fps, weighted {np.round(weights, 2).tolist()}")
for head, probabilities in (("action", action), ("offence_severity", severity)):
    print(f"{head}: {labels[head][probabilities.argmax()]} ({probabilities.max():.0%})")
