"""What are the images of an evaluation prompted with? From its settings to a prompter a draw; knows no nets and writes
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promise.config import EvalConfig
from promise.engine import SharePrompter
from promise.errors import UserError, unknown_name
from promise.models.prompts import ORIGINS, fixed_labels, prompt_batch
from promise.prompt_file import Draw, ImagePrompts, PromptFile
from promise.types import Batch, Points, Prompts

FILE = "file:"


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

    def prompters(self, dataset: str, draws: Sequence[Draw] | None, *, side: int) -> list[SharePrompter]:
        """A prompter a draw for the images of a data set; ``draws`` as :meth:`draws` gave them."""
        if draws is not None:
            return [partial(_from_file, draw.images[dataset], side) for draw in draws]
        draw = partial(prompt_batch, self.source, num_points=self.num_points, positive=self.positive, box=self.box)
        return [partial(_whole, partial(draw, seed=seed or 0)) for seed in self.seeds]


def _whole(prompter: Any, batch: Batch) -> list[tuple[Sequence[int], Prompts]]:
    return [(range(len(batch)), prompter(batch))]


def _from_file(images: Mapping[str, ImagePrompts], side: int, batch: Batch) -> list[tuple[Sequence[int], Prompts]]:
    """Shares of a batch whose images have as many prompts: a padded one would be decoded otherwise."""
    given = [images[name].at(side) for name in batch.name]
    kinds: dict[tuple[int, bool], list[int]] = {}
    for place, (xy, _, box) in enumerate(given):
        kinds.setdefault((len(xy), box is not None), []).append(place)
    shares: list[tuple[Sequence[int], Prompts]] = []
    for (count, boxed), places in kinds.items():
        points = boxes = None
        if count or not boxed:
            xy = np.stack([given[i][0] for i in places])
            points = Points(torch.from_numpy(xy), torch.from_numpy(np.stack([given[i][1] for i in places])))
        if boxed:
            boxes = torch.tensor(np.array([given[i][2] for i in places]))
        shares.append((places, Prompts(points, boxes)))
    return shares


def check_prompting(config: EvalConfig) -> list[str]:
    """What is wrong with the settings of prompts, before any file is opened; a sentence each."""
    source, faults = config.prompts, []
    try:
        if source is not None and not source.startswith(FILE) and source not in ORIGINS:
            raise unknown_name("prompts", source, (*ORIGINS, "file:prompts.json"))
        if config.num_points is not None:
            fixed_labels(config.num_points)
        if config.gt_points is not None:
            parse_gt_points(config.gt_points)
    except UserError as error:
        faults.append(str(error).rstrip("."))
    if config.gt_points is not None and config.num_points is not None:
        faults.append("--gt-points and --num-points exclude each other")
    if (config.gt_points or config.gt_box) and source not in (None, "gt"):
        faults.append("--gt-points and --gt-box go with --prompts gt; gt-box is the box alone")
    if config.prompt_seeds < 1:
        faults.append("--prompt-seeds must be at least 1")
    if config.prompt_seeds > 1 and source is not None and source != "gt":
        why = "a file brings its own draws" if source.startswith(FILE) else f"nothing of {source} is drawn"
        faults.append(f"--prompt-seeds {config.prompt_seeds} goes with --prompts gt: {why}")
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


def settle_prompting(config: EvalConfig, *, net: str, own_prompts: bool, num_points: int, seed: int) -> Prompting:
    """Settle where prompts come from.

    Args:
        config: the settings; :func:`check_prompting` found no fault in them.
        net: its name, for messages.
        own_prompts: whether the net places prompts of its own.
        num_points: the checkpoint's.
        seed: of the first draw.

    Raises:
        UserError: settings that do not fit the net, or a prompts file that cannot be read.
    """
    if config.prompts is not None and config.prompts.startswith(FILE):
        file = PromptFile(Path(config.prompts.removeprefix(FILE)).expanduser())
        return Prompting("file", file.seeds, file=file)
    source = config.prompts or ("auto" if own_prompts else "gt")
    if source == "auto" and not own_prompts:
        raise UserError(f"{net} places no prompts of its own: use --prompts gt, gt-box, centre, none or file:….")
    if source == "auto":
        _refuse_beside_auto(config, net, num_points)
    if config.gt_points is not None:
        positive, negative = parse_gt_points(config.gt_points)
        points, share = positive + negative, positive
    else:
        points, share = config.num_points or num_points, None
    seeds = tuple(seed + i for i in range(config.prompt_seeds)) if source == "gt" else (None,)
    return Prompting(source, seeds, points, share, config.gt_box)


def _refuse_beside_auto(config: EvalConfig, net: str, num_points: int) -> None:
    if config.num_points not in (None, num_points):
        raise UserError(f"{net} places {num_points} points of its own: drop --num-points {config.num_points}.")
    if config.gt_points or config.gt_box or config.prompt_seeds > 1:
        raise UserError(
            f"{net} places its own points, the same each time: --gt-points, --gt-box and --prompt-seeds want "
            "--prompts gt."
        )
