"""Prompt sources of an evaluation: from the settings to one function per draw that supplies the prompts of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from promise.prompts.file import Draw, PromptFile
from promise.prompts.sampling import AUTO, FILE, GROUND_TRUTH, SOURCES, Source, prompt_batch
from promise.prompts.sets import ImagePrompts
from promise.runtime.errors import UserError, excerpt, unknown_name
from promise.runtime.reading import expand_home
from promise.runtime.settings import MAX_POINTS
from promise.types import Batch, Points, Prompts


@dataclass(frozen=True)
class PromptGroup:
    """Images of a batch that are decoded together: all their prompt sets have the same shape, see :class:`PromptSet`.

    An image whose sets have several shapes is a group of its own: a padded point would change the result.
    """

    indices: Sequence[int]  # in the batch
    prompts: Prompts | None  # of these images; None: the net's own
    mask_index: int | None = None  # which of SAM's three multimask masks; None: the net's own output
    fuse: bool | None = None  # whether the net's map of lesions is added; None: to masks of the net's own prompts
    others: Sequence[Prompts] = ()  # further sets of an image on its own, in order: the mask is the union of all


# Supplies the prompts of a batch, group by group.
PromptSource = Callable[[Batch], Sequence[PromptGroup]]


@dataclass(frozen=True)
class PromptSettings:
    """The prompt settings of a command."""

    source: str | None = None  # a name of SOURCES, file:PATH, or None: the net's default
    num_points: int | None = None
    gt_points: str | None = None  # foreground+background points, such as 8+8
    gt_box: bool = False
    seeds: int = 1  # draws


@dataclass(frozen=True)
class Prompting:
    """The source of the prompts and the number of draws."""

    source: str  # a name of SOURCES
    seeds: tuple[int | None, ...]  # of the draws
    num_points: int = 0  # drawn from the ground truth, or predicted by the net
    positive: int | None = None  # number of drawn points in the foreground; None: half
    box: bool = False  # the box of the ground truth in addition to the points
    file: PromptFile | None = None

    @property
    def origin(self) -> str:
        """The origin of the prompts as results name it."""
        return SOURCES[self.source].origin

    @property
    def written_source(self) -> str:
        """The source that a prompts file records."""
        return self.file.source if self.file else self.source

    def describe(self) -> dict[str, Any]:
        """The entries of the summary."""
        entries: dict[str, Any] = {"prompts": self.origin, "prompt_source": self.source}
        if SOURCES[self.source].is_random:
            positive = max(1, self.num_points // 2) if self.positive is None else self.positive
            entries["prompt_points"] = {"positive": positive, "negative": self.num_points - positive}
            entries["prompt_box"] = self.box
        if self.file:
            digest = hashlib.sha256(self.file.path.read_bytes()).hexdigest()
            entries["prompt_file"] = {"path": str(self.file.path), "sha256": digest, "source": self.file.source}
        return entries

    def draws(
        self, sizes: Mapping[str, Mapping[str, tuple[int, int]]], *, side: int, mask_side: int | None = None
    ) -> Sequence[Draw] | None:
        """The draws of a file for these images; ``None`` without a file. See :meth:`PromptFile.select`."""
        return self.file.select(sizes, side=side, mask_side=mask_side) if self.file else None

    def sources(self, dataset: str, draws: Sequence[Draw] | None, *, side: int) -> list[PromptSource]:
        """One prompt source per draw for the images of a data set.

        Args:
            dataset: name of the data set.
            draws: result of :meth:`draws`.
            side: side of the net's input.
        """
        if draws is not None:
            return [partial(_from_file, draw.images[dataset], side) for draw in draws]
        draw = partial(prompt_batch, self.source, num_points=self.num_points, positive=self.positive, box=self.box)
        return [partial(_as_one_group, partial(draw, seed=seed or 0)) for seed in self.seeds]


def _as_one_group(draw: Callable[[Batch], Prompts | None], batch: Batch) -> list[PromptGroup]:
    return [PromptGroup(range(len(batch)), draw(batch))]


def _from_file(images: Mapping[str, ImagePrompts], side: int, batch: Batch) -> list[PromptGroup]:
    return group_prompts([images[name] for name in batch.name], side)


def group_prompts(images: Sequence[ImagePrompts], side: int) -> list[PromptGroup]:
    """Group images by the shape of their prompt sets, with prompts in pixels of a net input of ``side`` pixels."""
    groups: dict[tuple[object, ...], list[int]] = {}
    without: dict[tuple[object, ...], list[int]] = {}  # images without sets, which can join any group
    mixed: list[int] = []
    for index, one in enumerate(images):
        shapes = {each.shape for each in one.sets}
        decoding: tuple[object, ...] = one.mask_index, one.fuse
        if len(shapes) > 1:
            mixed.append(index)
        elif shapes:
            groups.setdefault((*decoding, *shapes), []).append(index)
        else:
            without.setdefault(decoding, []).append(index)
    for decoding, indices in without.items():
        key = next((key for key in groups if key[:2] == decoding), decoding)
        groups[key] = sorted([*groups.get(key, []), *indices])
    found = [(indices, [_stack([images[i] for i in indices], side)]) for indices in groups.values()]
    found += [([index], _stack_runs(images[index], side)) for index in mixed]
    return [
        PromptGroup(indices, first, images[indices[0]].mask_index, images[indices[0]].fuse, others)
        for indices, (first, *others) in found
    ]


def _stack_runs(image: ImagePrompts, side: int) -> list[Prompts]:
    """The prompts of one image, without changing their order: one value per run of sets of the same shape."""
    runs = groupby(image.sets, key=lambda one: one.shape)
    return [_stack([replace(image, sets=tuple(run))], side) for _, run in runs]


def _stack(images: Sequence[ImagePrompts], side: int) -> Prompts:
    """Stack the prompt sets of images, all of the same shape, in pixels of a net input of ``side`` pixels."""
    counts = [len(one.sets) for one in images]
    # As prompters do: without an owner, each image has one set.
    owner = None if set(counts) == {1} else torch.repeat_interleave(torch.arange(len(images)), torch.tensor(counts))
    sets = [one for image in images for one in image.at(side)]
    if not sets:
        return Prompts(boxes=torch.zeros(0, 4), image=owner)
    first = sets[0]
    points = boxes = masks = None
    if len(first.xy) or (first.box is None and first.mask is None):
        xy, label = np.stack([one.xy for one in sets]), np.stack([one.label for one in sets])
        points = Points(torch.from_numpy(xy), torch.from_numpy(label))
    if first.box is not None:
        boxes = torch.tensor(np.array([one.box for one in sets]))
    if first.mask is not None:
        masks = torch.from_numpy(np.stack([one.mask for one in sets if one.mask is not None]))[:, None]
    suggested = None
    if len(first.suggested_xy):
        xy, label = np.stack([one.suggested_xy for one in sets]), np.stack([one.suggested_label for one in sets])
        suggested = Points(torch.from_numpy(xy), torch.from_numpy(label))
    return Prompts(points, boxes, masks, owner, suggested)


def parse_source(text: str) -> tuple[Source, str]:
    """Read a setting such as ``gt`` or ``file:prompts.json``.

    Returns:
        The row of :data:`SOURCES`, and the path of the file; without a file, an empty text.

    Raises:
        UserError: unknown source (``unknown-prompts``).
    """
    name, colon, path = text.partition(":")
    source = SOURCES.get(name)
    if source is None or source.reads_file != bool(colon):
        raise unknown_name("prompts", text, [one.usage for one in SOURCES.values()])
    return source, path


def find_prompting_errors(settings: PromptSettings) -> list[UserError]:
    """All faults in the prompt settings, each with a code. Opens no file."""
    errors: list[UserError] = []
    source = None
    try:
        source = None if settings.source is None else parse_source(settings.source)[0]
    except UserError as error:
        errors.append(error)
    try:
        if settings.gt_points is not None:
            parse_gt_points(settings.gt_points)
    except UserError as error:
        errors.append(error)

    def report(message: str, code: str) -> None:
        errors.append(UserError(message, code=code))

    if settings.gt_points is not None and settings.num_points is not None:
        report("--gt-points and --num-points are mutually exclusive", "conflicting-settings")
    if (settings.gt_points or settings.gt_box) and source is not None and source.name != GROUND_TRUTH:
        report(
            "--gt-points and --gt-box require --prompts gt; gt-box uses only the box", "gt-settings-without-gt-prompts"
        )
    if settings.seeds < 1:
        report("--prompt-seeds must be at least 1", "invalid-prompt-seeds")
    if settings.seeds > 1 and source is not None and not source.is_random:
        why = "the draws of a file are fixed" if source.reads_file else f"{source.name} is not random"
        report(f"--prompt-seeds {settings.seeds} requires --prompts gt: {why}", "seeds-without-random-prompts")
    return errors


def parse_gt_points(text: str) -> tuple[int, int]:
    """Read ``8+8`` as (8, 8), the numbers of foreground and background points.

    Raises:
        UserError: another form, no point at all, or too many (``invalid-gt-points``).
    """
    positive, plus, negative = text.replace(" ", "").partition("+")
    whole = all(part.isascii() and part.isdigit() and len(part) < 10 for part in (positive, negative))
    if not plus or not whole or not 0 < int(positive) + int(negative) <= MAX_POINTS:
        raise UserError(
            f"--gt-points must be foreground+background points such as 8+8 or 1+0, at most {MAX_POINTS} together, not "
            f"{excerpt(text)!r}.",
            code="invalid-gt-points",
        )
    return int(positive), int(negative)


def resolve_prompting(
    settings: PromptSettings, *, net: str, own_prompts: bool, num_points: int, seed: int
) -> Prompting:
    """Resolve the source of the prompts.

    Args:
        settings: settings without faults; see :func:`find_prompting_errors`.
        net: name of the net, for messages.
        own_prompts: whether the net has a prompter.
        num_points: number of points of the checkpoint.
        seed: seed of the first draw.

    Raises:
        UserError: settings that do not fit the net, or a prompts file that cannot be read.
    """
    source, path = parse_source(settings.source or (AUTO if own_prompts else GROUND_TRUTH))
    if source.reads_file:
        file = PromptFile(expand_home(path))
        return Prompting(FILE, file.seeds, file=file)
    if source.name == AUTO:
        if not own_prompts:
            others = ", ".join(one.usage for one in SOURCES.values() if one.name != AUTO)
            raise UserError(
                f"{net} has no prompter. Choose the prompts with --prompts: {others}.", code="net-without-prompter"
            )
        _check_beside_auto(settings, net, num_points)
    if settings.gt_points is not None:
        positive, negative = parse_gt_points(settings.gt_points)
        points, in_foreground = positive + negative, positive
    else:
        points, in_foreground = settings.num_points or num_points, None
    seeds = tuple(seed + i for i in range(settings.seeds)) if source.is_random else (None,)
    return Prompting(source.name, seeds, points, in_foreground, settings.gt_box)


def _check_beside_auto(settings: PromptSettings, net: str, num_points: int) -> None:
    if settings.num_points not in (None, num_points):
        raise UserError(
            f"the prompter of {net} predicts {num_points} points: remove --num-points {settings.num_points}.",
            code="num-points-mismatch",
        )
    if settings.gt_points or settings.gt_box or settings.seeds > 1:
        raise UserError(
            f"{net} prompts itself, without randomness: --gt-points, --gt-box and --prompt-seeds require --prompts gt.",
            code="gt-settings-without-gt-prompts",
        )
