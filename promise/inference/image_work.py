"""What one process of ``promise-predict`` does with its images: load the net, segment, write the results."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promise.data.images import write_png
from promise.data.inputs import Input, input_size, read_input
from promise.features.loader import ProcessGroup
from promise.inference.config import PredictConfig
from promise.inference.contours import coco_shape
from promise.inference.loading import load_net
from promise.inference.loop import RowPrediction, predict_draws
from promise.inference.output_folder import CONTOUR, DATASET, PredictionFolder
from promise.inference.overlay import draw_overlay
from promise.inference.postprocess import STRIP, Bools, Float32s
from promise.inference.segmenter import Segmenter
from promise.prompts.file import PromptFile
from promise.prompts.sampling import AUTO, FILE
from promise.prompts.source import Prompting, PromptSource
from promise.runtime.errors import UserError, WriteError, is_out_of_memory
from promise.runtime.memory import explain_out_of_memory, return_freed_memory
from promise.runtime.progress import progress_bar
from promise.runtime.workers import ordered_map
from promise.types import Batch

LARGE = 2**25  # pixels; larger images are read and written one at a time, whatever the number of threads


@dataclass
class ImageWork:
    """The segmentation of the images of one run by one process."""

    config: PredictConfig
    folder: PredictionFolder
    inputs: Sequence[Input]
    todo: frozenset[int]  # indices in the inputs
    kinds: Sequence[str]
    failures: dict[int, str] = field(default_factory=dict)  # index → message
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # index → width, height
    made: int = 0
    segmenter: Segmenter | None = None
    sources: Sequence[PromptSource] = ()
    _turn: threading.Lock = field(default_factory=threading.Lock)  # of the threads that work on large images

    def any_readable(self) -> bool:
        """Whether any unfinished image can be read; otherwise no net is needed."""
        for index in sorted(self.todo):
            path = self.inputs[index].path
            try:
                with self._in_turn(input_size(path)):
                    read_input(path)
            except UserError as error:
                self.failures[index] = str(error)
            else:
                self.failures.clear()  # run() records them again
                return True
        return False

    def load(self, device: torch.device, file: PromptFile | None) -> None:
        """Load the net, and the prompts of all images in its batches."""
        config = self.config
        self.segmenter = Segmenter(
            load_net(
                config.ckpt,
                net=config.net,
                sam=config.sam,
                sam_checkpoint=config.sam_checkpoint,
                postprocess=config.postprocess,
                max_lesions=config.max_lesions,
                lesion_settings=config.lesion_settings,
                precision=config.precision,
                device=str(device),
            )
        )
        if file is None and self.segmenter.needs_prompts:
            raise UserError(
                f"{self.segmenter.metadata.net} has no prompter: supply prompts with --prompts-from.",
                code="net-without-prompter",
            )
        prompting = Prompting(FILE, file.seeds, file=file) if file else Prompting(AUTO, (None,))
        sizes = {self.inputs[i].name: size for i, size in self._sizes().items()} if file else {}
        side, mask_side = self.segmenter.side, self.segmenter.mask_side
        draws = prompting.draws({DATASET: sizes}, side=side, mask_side=mask_side)
        self.sources = prompting.sources(DATASET, draws, side=side)

    def run(self, processes: ProcessGroup) -> None:
        """Segment and write the images of this process."""
        if self.segmenter is None:
            return
        mine = self._batches()[processes.index :: processes.count]
        total = sum(index in self.todo for indices in mine for index in indices)
        quiet = self.config.quiet or processes.index > 0
        net, device = self.segmenter.net, self.segmenter.device
        bar = progress_bar(total=total, name="predicting", unit="image", quiet=quiet)
        with bar, explain_out_of_memory(self.config.batch_size):
            rows = predict_draws(net, self._load_batches(mine), sources=self.sources, device=device)
            unfinished = (row for row in rows if row.index in self.todo)
            for written in ordered_map(self._write, unfinished, workers=self.config.workers):
                self.made += written
                bar.update()

    def _batches(self) -> list[range]:
        """The batches with unfinished images.

        All inputs are divided into batches, finished or not: rounding depends on the images that share a batch, and a
        resumed run must be bit-identical to an uninterrupted one.
        """
        count, size = len(self.inputs), self.config.batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [indices for indices in batches if not self.todo.isdisjoint(indices)]

    def _sizes(self) -> dict[int, tuple[int, int]]:
        found = {}
        for index in (index for indices in self._batches() for index in indices):
            try:
                found[index] = input_size(self.inputs[index].path)
            except UserError:
                continue  # reported when it is read
        return found

    def _load_batches(self, mine: Iterable[range]) -> Iterator[Batch]:
        assert self.segmenter is not None
        loaded = ordered_map(self._load, (i for indices in mine for i in indices), workers=self.config.workers)
        for indices in mine:
            readable = [(i, tensor) for i, tensor in islice(loaded, len(indices)) if tensor is not None]
            if any(i in self.todo for i, _ in readable):
                at, tensors = zip(*readable, strict=True)
                names = [self.inputs[i].name for i in at]
                yield self.segmenter.batch(torch.stack(tensors), names, torch.tensor(at))

    def _load(self, index: int) -> tuple[int, Tensor | None]:
        assert self.segmenter is not None
        try:
            with _explain_memory(), self._in_turn(input_size(self.inputs[index].path)):
                tensor, self.sizes[index] = self.segmenter.prepare(self.inputs[index].path)
        except UserError as error:
            self.failures[index] = str(error)
            return index, None
        return index, tensor

    def _write(self, row: RowPrediction) -> bool:
        """Write the results of an image; whether that was possible. Only a full disk and the like end the run."""
        try:
            with _explain_memory(), self._in_turn(self.sizes[row.index]):
                self._write_files(row)
        except UserError as error:
            if isinstance(error, WriteError) and error.errno != errno.ENAMETOOLONG:
                raise
            self.failures[row.index] = str(error)
            return False
        return True

    @contextmanager
    def _in_turn(self, size: tuple[int, int]) -> Iterator[None]:
        """Inside, no other thread reads or writes a large image; ``size`` is width and height in pixels."""
        if size[0] * size[1] <= LARGE:
            yield
            return
        with self._turn:
            try:
                yield
            finally:
                return_freed_memory()

    def _write_files(self, row: RowPrediction) -> None:
        assert self.segmenter is not None
        one, size, folder = self.inputs[row.index], self.sizes[row.index], self.folder
        found = self.segmenter.finish(row, size)
        prompts = found.prompts
        values: dict[str, Any] = {"iou": found.iou, "seconds": round(found.seconds, 4), "area": found.area}
        if self.segmenter.net.quality is not None and not self.config.prompts_from:
            values["estimated_iou"] = found.quality
        for kind in self.kinds:
            if kind == CONTOUR:
                values[CONTOUR] = coco_shape(found.mask)
            elif kind == "overlay":
                overlay = draw_overlay(
                    read_input(one.path),
                    np.zeros_like(found.mask),
                    found.mask,
                    xy=prompts.placed_xy,
                    label=prompts.placed_label,
                    boxes=prompts.boxes,
                )
                write_png(folder.image_path(kind, one.name), overlay)
            else:
                pixels = _grey(found.mask if kind == "mask" else found.probability)
                write_png(folder.image_path(kind, one.name), pixels)
        folder.add(one, prompts, self.kinds, **values)


@contextmanager
def _explain_memory() -> Iterator[None]:
    """Convert a lack of memory for one image into an error of this image."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "the image does not fit into the memory. Reduce or divide it.", code="image-too-large"
        ) from error


def _grey(values: Bools | Float32s) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Grey levels: 0 and 255 for a mask, 0 to 65535 for a map in [0, 1]."""
    if values.dtype == np.bool_:
        return values.view(np.uint8) * np.uint8(255)
    levels = np.empty(values.shape, np.uint16)
    step = max(1, STRIP // values.shape[1])
    for top in range(0, len(values), step):
        levels[top : top + step] = np.rint(values[top : top + step].astype(np.float64) * 65535)
    return levels
