"""Comparison of exported graphs with the net, on synthetic images.

Every graph is compared on inputs from the net, and then encoder, prompter and decoder in sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promise.data.phantom import make_phantom
from promise.data.transforms.recipes import Transform
from promise.evaluation.metrics import binary_metrics
from promise.export.formats import Arrays, Runner
from promise.export.graphs import decoder_channels, prompter_inputs
from promise.inference.postprocess import probability_at
from promise.models.promise import Promise
from promise.models.prompters.dense import DensePrompter
from promise.types import Encoded, Points, Prompts

# Largest accepted difference from PyTorch, relative to the largest absolute value, or to 1 if that is larger.
ONE_GRAPH = 1e-4  # of one graph on inputs from the net
ALL_GRAPHS = 1e-3  # of logits after encoder, prompter and decoder in sequence
LEAST_DICE = 0.999  # smallest accepted Dice of masks at the size of the image, before any morphology


@dataclass(frozen=True)
class CheckImage:
    """An image on which graphs are compared, with its features."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    image: Tensor  # (1, 3, S, S), as the loader returns it
    box: Tensor  # (1, 4) of the ground truth, input pixels
    encoded: Encoded


@dataclass(frozen=True)
class Check:
    """The worst result of one comparison over all images."""

    graph: str
    what: str
    found: float
    bound: float
    unit: str = "difference"  # or "dice", which must be at least the bound

    @property
    def passed(self) -> bool:
        """Whether the result is within the bound; ``False`` for NaN."""
        return self.found >= self.bound if self.unit == "dice" else self.found <= self.bound

    def __str__(self) -> str:
        if self.unit == "dice":
            return f"{self.graph}: Dice of {self.what} {self.found:.5f}, at least {self.bound} is required"
        return f"{self.graph}: {self.what} differs by {self.found:.1e}, at most {self.bound:.0e} is allowed"

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        return {**asdict(self), "passed": self.passed}


def make_images(net: Promise, transform: Transform, *, count: int, seed: int = 0) -> list[CheckImage]:
    """Return ``count`` synthetic images of different sizes, smaller and larger than the input of the net."""
    side = transform.image_size
    images = []
    for index in range(count):
        pixels, target = make_phantom(seed=seed, index=index, size=(max(32, side // 2), side * 3 // 2))
        height, width = target.shape
        image, _ = transform(torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(target)[None])
        rows, columns = np.nonzero(target)
        corners = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]]) + 0.5
        box = torch.from_numpy(corners * side / (width, height) - 0.5).float().reshape(1, 4)
        with torch.no_grad():
            encoded = net.encode(image[None]) if net.needs_taps else net.sam.encode(image[None])
            images.append(CheckImage(pixels, image[None], box, encoded))
    return images


@torch.no_grad()
def check_graphs(
    net: Promise, runners: Mapping[str, Runner], images: Sequence[CheckImage], *, threshold: float
) -> list[Check]:
    """Compare every graph with the net.

    Args:
        net: net on the CPU.
        runners: graph name → function that runs the exported file.
        images: result of :func:`make_images`.
        threshold: minimum probability of foreground pixels.

    Returns:
        The worst result of each comparison over all images.
    """
    found: list[Check] = []
    for image in images:
        found += _check_encoder(runners["encoder"], image.image, image.encoded)
        if "prompter" in runners:
            found += _check_prompter(net, runners["prompter"], image.encoded)
        for prompts in _prompts(net, image):
            found += _check_decoder(net, runners["decoder"], image.encoded, *prompts)
        found += _check_chain(net, runners, image, threshold=threshold)
        if "image" in runners:
            found += _check_image(net, runners["image"], image, threshold=threshold)
    return worst(found)


def worst(checks: Sequence[Check]) -> list[Check]:
    """Return the worst result of each comparison, in the order of first occurrence."""
    kept: dict[tuple[str, str, str], Check] = {}
    for check in checks:
        key = check.graph, check.what, check.unit
        before = kept.get(key)
        worse = before is None or (check.found < before.found) == (check.unit == "dice") or np.isnan(check.found)
        if worse and not (before is not None and np.isnan(before.found)):
            kept[key] = check
    return list(kept.values())


def difference(found: NDArray[Any], expected: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest absolute expected value or 1.

    ``inf`` if the shapes differ or a value is not finite.
    """
    reference = expected.double().numpy()
    if found.shape != reference.shape or not np.isfinite(found).all():
        return float("inf")
    if not found.size:
        return 0.0
    return float(np.abs(found.astype(np.float64) - reference).max() / max(1.0, np.abs(reference).max()))


def _check_encoder(run: Runner, image: Tensor, encoded: Encoded) -> list[Check]:
    found = run({"image": image})
    expected = dict(zip(found, encoded.tensors, strict=True))
    return [Check("encoder", name, difference(found[name], expected[name]), ONE_GRAPH) for name in found]


def _check_prompter(net: Promise, run: Runner, encoded: Encoded) -> list[Check]:
    found = run(prompter_inputs(net, encoded))
    if isinstance(net.apm, DensePrompter):
        map_difference = difference(found["map"], net.lesion_map(encoded))
        boxes = net.apm.place_prompts(torch.from_numpy(found["map"])).boxes
        assert boxes is not None
        return [
            Check("prompter", "map", map_difference, ONE_GRAPH),
            Check("prompter", "boxes", difference(found["boxes"][found["scores"] > 0], boxes), ONE_GRAPH),
        ]
    expected = net.prompt(encoded).prompts.points
    assert expected is not None
    pairs = (("points", expected.xy), ("labels", expected.label))
    return [Check("prompter", name, difference(found[name], value), ONE_GRAPH) for name, value in pairs]


def _prompts(net: Promise, image: CheckImage) -> list[tuple[Points | None, Tensor | None]]:
    """Return prompts with different numbers of tokens: points, one point, a box, points and a box."""
    centre = image.box.reshape(1, 2, 2).mean(dim=1, keepdim=True)
    one = Points(centre, torch.ones(1, 1, dtype=torch.int64))
    several = _points(net, image)
    return [(several, None), (one, None), (None, image.box), (several, image.box)]


def _points(net: Promise, image: CheckImage) -> Points:
    """Return the points of the prompter; without them the centre of the box, and its corners as background."""
    if net.apm is not None and net.lesions is None:
        points = net.prompt(image.encoded).prompts.points
        assert points is not None
        return points
    corners = image.box.reshape(1, 2, 2)
    xy = torch.cat((corners.mean(dim=1, keepdim=True), corners), dim=1)
    return Points(xy, torch.tensor([[1, 0, 0]]))


def _tokens(points: Points | None, box: Tensor | None) -> dict[str, Tensor]:
    """Convert prompts to inputs of the decoder graph: a box is two points after the others; else one padding point."""
    if box is None:
        xy, label = torch.zeros(1, 1, 2), torch.tensor([[-1]])
    else:
        xy, label = box.reshape(1, 2, 2), torch.tensor([[2, 3]])
    if points is not None:
        xy, label = torch.cat((points.xy, xy), dim=1), torch.cat((points.label, label), dim=1)
    return {"points": xy, "labels": label}


def _check_decoder(
    net: Promise, run: Runner, encoded: Encoded, points: Points | None, box: Tensor | None
) -> list[Check]:
    shift = None if net.ips is None else net.ips(encoded.embedding)
    expected = net.sam.decode(encoded, Prompts(points, box), token_shift=shift, channels=decoder_channels(net))
    found = run({"embedding": encoded.embedding, **_tokens(points, box)})
    pairs = (("logits", expected[0]), ("iou", expected[1]))
    return [Check("decoder", name, difference(found[name], value), ONE_GRAPH) for name, value in pairs]


def _check_chain(net: Promise, runners: Mapping[str, Runner], image: CheckImage, *, threshold: float) -> list[Check]:
    features = {name: torch.from_numpy(x) for name, x in runners["encoder"]({"image": image.image}).items()}
    points, box = (_points(net, image), None) if net.lesions is None else (None, image.box)
    expected = net.decode(image.encoded, Prompts(points, box)).mask_logits
    if "prompter" in runners:
        placed = runners["prompter"]({name: features[name] for name in prompter_inputs(net, image.encoded)})
        if net.lesions is None:
            points = Points(torch.from_numpy(placed["points"]), torch.from_numpy(placed["labels"]))
        elif placed["scores"][0, 0] > 0:
            box = torch.from_numpy(placed["boxes"][:, 0])
            expected = net.decode(image.encoded, Prompts(boxes=box)).mask_logits
    found = runners["decoder"]({"embedding": features["embedding"], **_tokens(points, box)})
    channel = decoder_channels(net).index(net.channel())
    logits = found["logits"][:, channel : channel + 1]
    mask = probability_at(logits[0, 0], *image.pixels.shape[:2]) >= threshold
    return [
        Check("all in turn", "logits", difference(logits, expected), ALL_GRAPHS),
        Check("all in turn", "masks", _dice(mask, expected, threshold=threshold), LEAST_DICE, "dice"),
    ]


def _check_image(net: Promise, run: Runner, image: CheckImage, *, threshold: float) -> list[Check]:
    found: Arrays = run({"picture": torch.from_numpy(image.pixels)})
    checks, prompts = [], None
    if isinstance(net.apm, DensePrompter):
        # The lesions of the graph's own map: rounding may move a pixel of the map across the threshold.
        lesion_logits = found["map"][None]
        prompts = net.apm.place_prompts(torch.from_numpy(lesion_logits))
        assert prompts.boxes is not None
        ratio = np.array(image.pixels.shape[1::-1]) / net.sam.backbone.image_size
        boxes = ((found["boxes"] + 0.5) / ratio - 0.5)[found["scores"] > 0].reshape(-1, 4)
        checks = [
            Check("image", "map", difference(lesion_logits, net.lesion_map(image.encoded)), ALL_GRAPHS),
            Check("image", "boxes", difference(boxes, prompts.boxes), ALL_GRAPHS),
        ]
    expected = net.decode(image.encoded, prompts, fuse=True)
    return [
        *checks,
        Check("image", "logits", difference(found["logits"][None, None], expected.mask_logits), ALL_GRAPHS),
        Check("image", "iou", difference(found["iou"][None], expected.iou), ALL_GRAPHS),
        Check(
            "image", "masks", _dice(found["mask"] > 0, expected.mask_logits, threshold=threshold), LEAST_DICE, "dice"
        ),
    ]


def _dice(mask: NDArray[np.bool_], expected: Tensor, *, threshold: float) -> float:
    """Return the Dice of a mask and the mask of logits (1, 1, 4E, 4E), resized; 1 if both are empty."""
    target = probability_at(expected[0, 0].numpy(), *mask.shape) >= threshold
    if not mask.any() and not target.any():
        return 1.0
    return float(binary_metrics(np.asarray(mask), target)["dice"])
