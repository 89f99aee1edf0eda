"""Where the prompts of an evaluation come from: settings → a prompt source per draw; knows no nets, writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promise.prompts.file import Draw, ImagePrompts, PromptFile
from promise.prompts.sampling import ORIGINS, prompt_batch
from promise.runtime.errors import UserError, unknown_name
from promise.types import Batch, Points, Prompts

FILE = "file:"


@dataclass(frozen=True)
class PromptGroup:
    """Images of a batch that are prompted alike: with as many points each, with a box or without."""

    places: Sequence[int]  # in the batch
    prompts: Prompts | None  # of these images; None: the net's own
    mask_index: int = 0  # which of SAM's three multimask masks


# Supplies the prompts of a batch, group by group.
PromptSource = Callable[[Batch], Sequence[PromptGroup]]


@dataclass(frozen=True)
class PromptSettings:
    """What the flags say about prompts."""

    source: str | None = None  # a name of ORIGINS, file:PATH, or None: what the net is meant for
    num_points: int | None = None
    gt_points: str | None = None  # foreground+background points, such as 8+8
    gt_box: bool = False
    seeds: int = 1  # draws


@dataclass(frozen=True)
class Prompting:
    """Where prompts come from, and how many draws of them there are."""

    source: str  # auto, gt, gt-box, centre, none or file
    seeds: tuple[int | None, ...]  # of the draws
    num_points: int = 0  # drawn from the truth, or placed by the net
    positive: int | None = None  # of the drawn ones, how many from the foreground; None: half
    box: bool = False  # the truth's box beside the points
    file: PromptFile | None = None

    @property
    def origin(self) -> str:
        """What results call it."""
        return "file" if self.file else ORIGINS[self.source]

    @property
    def written_source(self) -> str:
        """What a prompts file says of it."""
        return self.file.source if self.file else self.source

    def describe(self) -> dict[str, Any]:
        """For the summary."""
        told: dict[str, Any] = {"prompts": self.origin, "prompt_source": self.source}
        if self.source == "gt":
            positive = max(1, self.num_points // 2) if self.positive is None else self.positive
            told["prompt_points"] = {"positive": positive, "negative": self.num_points - positive}
            told["prompt_box"] = self.box
        if self.file:
            digest = hashlib.sha256(self.file.path.read_bytes()).hexdigest()
            told["prompt_file"] = {"path": str(self.file.path), "sha256": digest, "source": self.file.source}
        return told

    def draws(self, wanted: Mapping[str, Mapping[str, tuple[int, int]]], *, side: int) -> Sequence[Draw] | None:
        """A file's draws for the wanted images; ``None`` without a file. As :meth:`PromptFile.choose`."""
        return self.file.choose(wanted, side=side) if self.file else None

    def sources(self, dataset: str, draws: Sequence[Draw] | None, *, side: int) -> list[PromptSource]:
        """A prompt source per draw for the images of a data set; ``draws`` as :meth:`draws` returned them."""
        if draws is not None:
            return [partial(_from_file, draw.images[dataset], side) for draw in draws]
        draw = partial(prompt_batch, self.source, num_points=self.num_points, positive=self.positive, box=self.box)
        return [partial(_whole, partial(draw, seed=seed or 0)) for seed in self.seeds]


def _whole(draw: Callable[[Batch], Prompts | None], batch: Batch) -> list[PromptGroup]:
    return [PromptGroup(range(len(batch)), draw(batch))]


def _from_file(images: Mapping[str, ImagePrompts], side: int, batch: Batch) -> list[PromptGroup]:
    """Group a batch's images by the shape of their prompts: a padded point would change the result."""
    given = [images[name] for name in batch.name]
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, one in enumerate(given):
        shape = None if one.mask is None else one.mask.shape
        kinds.setdefault((len(one.xy), one.box is not None, shape, one.mask_index), []).append(place)
    return [
        PromptGroup(places, stack_prompts([given[i] for i in places], side), given[places[0]].mask_index)
        for places in kinds.values()
    ]


def stack_prompts(images: Sequence[ImagePrompts], side: int) -> Prompts:
    """Prompts of images that are prompted alike, in the frame of a net's input of ``side`` pixels."""
    first = images[0]
    points = boxes = masks = None
    brought = [one.at(side) for one in images]
    if len(first.xy) or (first.box is None and first.mask is None):
        points = Points(
            torch.from_numpy(np.stack([xy for xy, _, _ in brought])),
            torch.from_numpy(np.stack([label for _, label, _ in brought])),
        )
    if first.box is not None:
        boxes = torch.tensor(np.array([box for _, _, box in brought]))
    if first.mask is not None:
        masks = torch.from_numpy(np.stack([one.mask for one in images if one.mask is not None]))[:, None]
    return Prompts(points, boxes, masks)


def check_prompting(settings: PromptSettings) -> list[str]:
    """What is wrong with the settings of prompts, before any file is opened; a sentence each."""
    source, faults = settings.source, []
    try:
        if source is not None and not source.startswith(FILE) and source not in ORIGINS:
            raise unknown_name("prompts", source, (*ORIGINS, "file:prompts.json"))
        if settings.gt_points is not None:
            parse_gt_points(settings.gt_points)
    except UserError as error:
        faults.append(str(error).rstrip("."))
    if settings.gt_points is not None and settings.num_points is not None:
        faults.append("--gt-points and --num-points exclude each other")
    if (settings.gt_points or settings.gt_box) and source not in (None, "gt"):
        faults.append("--gt-points and --gt-box go with --prompts gt; gt-box is the box alone")
    if settings.seeds < 1:
        faults.append("--prompt-seeds must be at least 1")
    if settings.seeds > 1 and source is not None and source != "gt":
        why = "a file brings its own draws" if source.startswith(FILE) else f"nothing of {source} is drawn"
        faults.append(f"--prompt-seeds {settings.seeds} goes with --prompts gt: {why}")
    return faults


def parse_gt_points(text: str) -> tuple[int, int]:
    """``8+8`` → (8, 8), foreground and background.

    Raises:
        UserError: anything else, or no point at all.
    """
    positive, plus, negative = text.replace(" ", "").partition("+")
    whole = all(part.isascii() and part.isdigit() for part in (positive, negative))
    if not plus or not whole or int(positive) + int(negative) == 0:
        raise UserError(f"--gt-points wants foreground+background points such as 8+8 or 1+0, got {text!r}.")
    return int(positive), int(negative)


def resolve_prompting(
    settings: PromptSettings, *, net: str, own_prompts: bool, num_points: int, seed: int
) -> Prompting:
    """Decide where prompts come from.

    Args:
        settings: of the flags; :func:`check_prompting` found no fault in them.
        net: its name, for messages.
        own_prompts: whether the net places prompts of its own.
        num_points: the checkpoint's.
        seed: of the first draw.

    Raises:
        UserError: settings that do not fit the net, or a prompts file that cannot be read.
    """
    if settings.source is not None and settings.source.startswith(FILE):
        file = PromptFile(Path(settings.source.removeprefix(FILE)).expanduser())
        return Prompting("file", file.seeds, file=file)
    source = settings.source or ("auto" if own_prompts else "gt")
    if source == "auto" and not own_prompts:
        raise UserError(f"{net} places no prompts of its own: use --prompts gt, gt-box, centre, none or file:….")
    if source == "auto":
        _refuse_beside_auto(settings, net, num_points)
    if settings.gt_points is not None:
        positive, negative = parse_gt_points(settings.gt_points)
        points, share = positive + negative, positive
    else:
        points, share = settings.num_points or num_points, None
    seeds = tuple(seed + i for i in range(settings.seeds)) if source == "gt" else (None,)
    return Prompting(source, seeds, points, share, settings.gt_box)


def _refuse_beside_auto(settings: PromptSettings, net: str, num_points: int) -> None:
    if settings.num_points not in (None, num_points):
        raise UserError(f"{net} places {num_points} points of its own: drop --num-points {settings.num_points}.")
    if settings.gt_points or settings.gt_box or settings.seeds > 1:
        raise UserError(
            f"{net} places its own points, the same each time: --gt-points, --gt-box and --prompt-seeds want "
            "--prompts gt."
        )
