"""Segment an image with ONNX Runtime, OpenCV and NumPy only: python onnx_example.py image.png mask.png."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

here = Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "image.onnx"), providers=["CPUExecutionProvider"])

image = cv2.imread(sys.argv[1], cv2.IMREAD_COLOR)
if image is None:
    sys.exit(f"{sys.argv[1]}: OpenCV cannot read this image.")
rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # (H, W, 3) uint8 of any size
mask, iou = session.run(["mask", "iou"], {"picture": rgb})

# The remaining postprocessing of the checkpoint. The threshold is part of the graph.
after = manifest["postprocess"]
if after["operation"] != "none":
    square = np.ones((after["kernel"], after["kernel"]), np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN if after["operation"] == "open" else cv2.MORPH_CLOSE, square)
if after["fill"]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = cv2.drawContours(np.zeros_like(mask), contours, -1, 255, cv2.FILLED)
if after["largest"]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    mask = np.where((labels == largest) & (mask > 0), 255, 0).astype(np.uint8)

if not cv2.imwrite(sys.argv[2], mask):
    sys.exit(f"{sys.argv[2]}: cannot be written.")
print(f"{sys.argv[2]}: {np.count_nonzero(mask)} pixels, predicted IoU {iou[0]:.3f}")
