"""Do the written graphs say what the net says? On pictures of the synthetic set, against the net as it predicts.

Every graph alone on the net's own inputs, then all of them one after another. Knows no file format.
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
from promise.export.graphs import MULTIMASK, tap_names
from promise.inference.postprocess import probability_at
from promise.models.promise import Promise
from promise.types import Encoded, Points, Prompts

# The largest difference from PyTorch, relative to the largest value there (or to 1, where all are smaller).
ONE_GRAPH = 1e-4  # of a graph on the net's own inputs
ALL_GRAPHS = 1e-3  # of logits behind encoder, prompter and decoder, each on what the one before gave
LEAST_DICE = 0.999  # of masks in the picture's own frame, before any morphology


@dataclass(frozen=True)
class Picture:
    """One picture of the check, and what the net says of it."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    image: Tensor  # (1, 3, S, S), as the loader makes it
    box: Tensor  # (1, 4) of the true mask, input pixels
    encoded: Encoded


@dataclass(frozen=True)
class Check:
    """The worst of one comparison over all pictures."""

    graph: str
    what: str
    found: float
    bound: float
    unit: str = "difference"  # or "dice", which must be at least the bound

    @property
    def passed(self) -> bool:
        """Whether it is within the bound; not-a-number is not."""
        return self.found >= self.bound if self.unit == "dice" else self.found <= self.bound

    def __str__(self) -> str:
        if self.unit == "dice":
            return f"{self.graph}: Dice of {self.what} {self.found:.5f}, at least {self.bound} is wanted"
        return f"{self.graph}: {self.what} differs by {self.found:.1e}, at most {self.bound:.0e} is allowed"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "passed": self.passed}


def make_pictures(net: Promise, transform: Transform, *, count: int, seed: int = 0) -> list[Picture]:
    """Synthetic pictures of ``count`` sizes, smaller and larger than the net's input, with the net's features."""
    side = transform.image_size
    pictures = []
    for index in range(count):
        pixels, truth = make_phantom(seed=seed, index=index, size=(max(32, side // 2), side * 3 // 2))
        height, width = truth.shape
        image, _ = transform(torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(truth)[None])
        rows, columns = np.nonzero(truth)
        corners = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]]) + 0.5
        box = torch.from_numpy(corners * side / (width, height) - 0.5).float().reshape(1, 4)
        with torch.no_grad():
            pictures.append(Picture(pixels, image[None], box, net.sam.encode(image[None])))
    return pictures


@torch.no_grad()
def check_graphs(
    net: Promise, runners: Mapping[str, Runner], pictures: Sequence[Picture], *, threshold: float
) -> list[Check]:
    """Compare every graph with the net, and give the worst of each comparison."""
    found: list[Check] = []
    for picture in pictures:
        found += _check_encoder(runners["encoder"], picture.image, picture.encoded)
        if "prompter" in runners:
            found += _check_prompter(net, runners["prompter"], picture.encoded)
        for prompts in _prompts(net, picture):
            found += _check_decoder(net, runners["decoder"], picture.encoded, *prompts)
        found += _check_chain(net, runners, picture, threshold=threshold)
        if "image" in runners:
            found += _check_image(net, runners["image"], picture, threshold=threshold)
    return worst(found)


def worst(checks: Sequence[Check]) -> list[Check]:
    """The worst of each comparison, in the order of their first."""
    kept: dict[tuple[str, str, str], Check] = {}
    for check in checks:
        key = check.graph, check.what, check.unit
        before = kept.get(key)
        worse = before is None or (check.found < before.found) == (check.unit == "dice") or np.isnan(check.found)
        if worse and not (before is not None and np.isnan(before.found)):
            kept[key] = check
    return list(kept.values())


def difference(found: NDArray[Any], wanted: Tensor) -> float:
    """The largest difference, relative to the largest value, or to 1; infinite where shapes or values cannot fit."""
    want = wanted.double().numpy()
    if found.shape != want.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - want).max() / max(1.0, np.abs(want).max()))


def _check_encoder(run: Runner, image: Tensor, encoded: Encoded) -> list[Check]:
    found = run({"image": image})
    wanted = dict(zip(found, (encoded.embedding, *encoded.taps), strict=True))
    return [Check("encoder", name, difference(found[name], wanted[name]), ONE_GRAPH) for name in found]


def _check_prompter(net: Promise, run: Runner, encoded: Encoded) -> list[Check]:
    assert net.apm is not None
    found = run(dict(zip(tap_names(net.sam.backbone), encoded.taps, strict=True)))
    wanted = net.prompt(encoded).prompts.points
    assert wanted is not None
    pairs = (("points", wanted.xy), ("labels", wanted.label))
    return [Check("prompter", name, difference(found[name], value), ONE_GRAPH) for name, value in pairs]


def _prompts(net: Promise, picture: Picture) -> list[tuple[Points | None, Tensor | None]]:
    """Points, one point, a box, and both: each another number of tokens."""
    centre = picture.box.reshape(1, 2, 2).mean(dim=1, keepdim=True)
    one = Points(centre, torch.ones(1, 1, dtype=torch.int64))
    several = _own_points(net, picture)
    return [(several, None), (one, None), (None, picture.box), (several, picture.box)]


def _own_points(net: Promise, picture: Picture) -> Points:
    """The net's own, or without a prompter the box's middle and its corners as background."""
    if net.apm is not None:
        points = net.prompt(picture.encoded).prompts.points
        assert points is not None
        return points
    corners = picture.box.reshape(1, 2, 2)
    xy = torch.cat((corners.mean(dim=1, keepdim=True), corners), dim=1)
    return Points(xy, torch.tensor([[1, 0, 0]]))


def _tokens(points: Points | None, box: Tensor | None) -> dict[str, Tensor]:
    """Prompts as a decoder's graph takes them: a box as two points behind the others, else a padding point."""
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
    wanted = net.sam.decode(encoded, Prompts(points, box), token_shift=shift, channels=MULTIMASK)
    found = run({"embedding": encoded.embedding, **_tokens(points, box)})
    pairs = (("logits", wanted[0]), ("iou", wanted[1]))
    return [Check("decoder", name, difference(found[name], value), ONE_GRAPH) for name, value in pairs]


def _check_chain(net: Promise, runners: Mapping[str, Runner], picture: Picture, *, threshold: float) -> list[Check]:
    encoded = runners["encoder"]({"image": picture.image})
    points = _own_points(net, picture)
    wanted = net.decode(picture.encoded, Prompts(points)).mask_logits
    if "prompter" in runners:
        placed = runners["prompter"]({name: torch.from_numpy(encoded[name]) for name in tap_names(net.sam.backbone)})
        points = Points(torch.from_numpy(placed["points"]), torch.from_numpy(placed["labels"]))
    found = runners["decoder"]({"embedding": torch.from_numpy(encoded["embedding"]), **_tokens(points, None)})
    logits = found["logits"][:, :1]
    mask = probability_at(logits[0, 0], *picture.pixels.shape[:2]) >= threshold
    return [
        Check("all in turn", "logits", difference(logits, wanted), ALL_GRAPHS),
        Check("all in turn", "masks", _dice(mask, wanted, threshold=threshold), LEAST_DICE, "dice"),
    ]


def _check_image(net: Promise, run: Runner, picture: Picture, *, threshold: float) -> list[Check]:
    wanted = net.decode(picture.encoded)
    found: Arrays = run({"picture": torch.from_numpy(picture.pixels)})
    return [
        Check("image", "logits", difference(found["logits"][None, None], wanted.mask_logits), ALL_GRAPHS),
        Check("image", "iou", difference(found["iou"][None], wanted.iou), ALL_GRAPHS),
        Check("image", "masks", _dice(found["mask"] > 0, wanted.mask_logits, threshold=threshold), LEAST_DICE, "dice"),
    ]


def _dice(mask: NDArray[np.bool_], wanted: Tensor, *, threshold: float) -> float:
    """With the mask of logits (1, 1, 4E, 4E) at the mask's size; two empty masks agree."""
    truth = probability_at(wanted[0, 0].numpy(), *mask.shape) >= threshold
    if not mask.any() and not truth.any():
        return 1.0
    return float(binary_metrics(np.asarray(mask), truth)["dice"])
