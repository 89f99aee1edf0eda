"""The prediction recipe: read, encode, prompt, decode, write, where it was left off; knows no flags and no truths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promise.data.dicom import is_dicom, require_pydicom
from promise.data.images import write_png
from promise.data.inputs import Input, list_inputs, picture_size, read_picture
from promise.data.transforms.recipes import PIXELS_VERSION
from promise.features.loader import ALONE, ProcessGroup
from promise.inference.config import PredictConfig
from promise.inference.contours import coco_shape
from promise.inference.loading import load_net
from promise.inference.loop import RowPrediction, predict_draws
from promise.inference.output_folder import CONTOUR, PROMPTS, PredictionFolder
from promise.inference.overlay import draw_overlay
from promise.inference.postprocess import Bools, Float32s, Postprocess
from promise.inference.segmenter import Segmenter
from promise.models import checkpoint
from promise.models.sam.weights import file_sha256
from promise.prompts.file import ImagePrompts, PromptFile
from promise.prompts.source import Prompting, PromptSource
from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError, all_of
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.progress import progress_bar
from promise.runtime.workers import ordered_map
from promise.types import Batch

IMAGES = "images"  # what the one data set of a prompts file is called


@dataclass(frozen=True)
class PredictResult:
    """What a prediction leaves."""

    folder: Path
    images: int  # that were asked for
    made: int  # in this run, by all processes
    failed: tuple[tuple[str, str], ...]  # (path, what is wrong with it)
    speaks: bool = True  # whether this process tells the user


def predict(config: PredictConfig) -> PredictResult:
    """Segment images with a checkpoint, and write what is not there yet.

    Raises:
        UserError: settings, files or weights that cannot be used; nothing has been written then.
    """
    check_predict(config)
    folder = PredictionFolder(Path(config.output or ""))
    _, inputs, file = all_of(
        lambda: checkpoint.require(config.ckpt or ""), lambda: _inputs(config, folder), lambda: _prompt_file(config)
    )
    if any(is_dicom(one.path) for one in inputs):
        require_pydicom()
    device, processes = _processes(config)
    settings = _settings(config, device)
    folder.check(settings, overwrite=config.overwrite)
    kinds = _kinds(config)
    done = [False] * len(inputs) if config.overwrite else folder.done(inputs, kinds)
    work = _Work(config, folder, inputs, frozenset(i for i, there in enumerate(done) if not there), kinds)
    if work.anything_readable():
        work.load(device, file)
    processes.wait()  # all have looked at the folder
    if processes.index == 0:
        names = {inputs[i].name for i in work.todo} if config.overwrite else set()
        folder.prepare(settings, describe_environment(device), names)
    processes.wait()
    try:
        work.run(processes)
        made, failed = _gather(work, processes)
        if processes.index == 0:
            folder.join(file.source if file else "auto")
    except OSError as error:
        raise UserError(f"{folder.path} cannot be written to ({error.strerror or error}).") from error
    processes.wait()
    return PredictResult(folder.path, len(inputs), made, tuple(failed), processes.index == 0)


def _inputs(config: PredictConfig, folder: PredictionFolder) -> list[Input]:
    return list_inputs(
        config.images,
        data_root=config.data_root,
        split=config.split,
        recursive=config.recursive,
        leave_out=folder.path,
    )


def _prompt_file(config: PredictConfig) -> PromptFile | None:
    file = PromptFile(Path(config.prompts_from)) if config.prompts_from else None
    if file is not None and len(file.seeds) > 1:
        raise UserError(f"{file.path} holds {len(file.seeds)} draws of prompts; one is wanted.")
    return file


def check_predict(config: PredictConfig) -> None:
    """Raise one ``UserError`` with all settings that make no sense, before any file is opened."""
    faults = []
    if not config.images:
        faults.append("which images? Give files, folders, patterns, CSVs or lists")
    if config.ckpt is None:
        faults.append("--ckpt is missing: a checkpoint, such as runs/polyp/best.safetensors")
    if config.output is None:
        faults.append("--output is missing: a folder for the masks")
    elif config.prompts_from and Path(config.prompts_from).resolve() == (Path(config.output) / PROMPTS).resolve():
        faults.append(f"--prompts-from {config.prompts_from} lies in --output, which would replace it: choose another")
    if config.batch_size < 1 or config.workers < 1:
        faults.append("--batch-size and --workers must be at least 1")
    if config.postprocess not in (None, "default"):
        try:
            Postprocess.parse(config.postprocess or "")
        except UserError as error:
            faults.append(str(error).rstrip("."))
    if faults:
        raise UserError("; ".join(faults) + ".")


def _kinds(config: PredictConfig) -> tuple[str, ...]:
    wanted = {"mask": True, "probability": config.probability, "overlay": config.overlay, CONTOUR: config.contour}
    return tuple(kind for kind, asked in wanted.items() if asked)


def _processes(config: PredictConfig) -> tuple[torch.device, ProcessGroup]:
    """This process's device, and the processes that share the images."""
    device = resolve_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, ALONE
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return state.device, ProcessGroup(state.process_index, state.num_processes, state.wait_for_everyone)


def _settings(config: PredictConfig, device: torch.device) -> dict[str, Any]:
    """What the outputs hang on; weights are told by content, not by name."""
    return {
        "checkpoint": file_sha256(Path(config.ckpt or "")),
        "net": config.net,
        "sam": config.sam,
        "postprocess": config.postprocess or "as the checkpoint says",
        "precision": resolve_precision(config.precision, device),
        "prompts": file_sha256(Path(config.prompts_from)) if config.prompts_from else "auto",
        "pixels_version": PIXELS_VERSION,
    }


def _gather(work: _Work, processes: ProcessGroup) -> tuple[int, list[tuple[str, str]]]:
    """How many images all processes made, and those that could not be used, in the inputs' order."""
    counts, faults = [work.made], list(work.faults.items())
    if processes.count > 1:
        from accelerate.utils import gather_object

        counts, faults = gather_object(counts), gather_object(faults)
    return sum(counts), [(str(work.inputs[i].path), words) for i, words in sorted(faults)]


@dataclass
class _Work:
    """The images while they are segmented."""

    config: PredictConfig
    folder: PredictionFolder
    inputs: Sequence[Input]
    todo: frozenset[int]  # places in the inputs
    kinds: Sequence[str]
    faults: dict[int, str] = field(default_factory=dict)  # place → what is wrong
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # place → width, height
    made: int = 0
    segmenter: Segmenter | None = None
    sources: Sequence[PromptSource] = ()

    def anything_readable(self) -> bool:
        """Whether a net is needed at all: not where nothing is left to do, or nothing that can be read."""
        for place in sorted(self.todo):
            try:
                read_picture(self.inputs[place].path)
            except UserError as error:
                self.faults[place] = str(error)
            else:
                self.faults.clear()  # they are met again
                return True
        return False

    def load(self, device: torch.device, file: PromptFile | None) -> None:
        """Load the net, and the prompts of all images that it will see."""
        config = self.config
        self.segmenter = Segmenter(
            load_net(
                config.ckpt,
                net=config.net,
                sam=config.sam,
                sam_checkpoint=config.sam_checkpoint,
                postprocess=config.postprocess,
                precision=config.precision,
                device=str(device),
            )
        )
        if file is None:
            if self.segmenter.needs_prompts:
                raise UserError(
                    f"{self.segmenter.metadata.net} places no prompts of its own: give them by --prompts-from."
                )
            prompting = Prompting("auto", (None,))
        else:
            prompting = Prompting("file", file.seeds, file=file)
        wanted = {self.inputs[i].name: size for i, size in self._sizes().items()} if file else {}
        draws = prompting.draws({IMAGES: wanted}, side=self.segmenter.side)
        self.sources = prompting.sources(IMAGES, draws, side=self.segmenter.side)

    def run(self, processes: ProcessGroup) -> None:
        """Segment and write this process's share."""
        if self.segmenter is None:
            return
        mine = self._batches()[processes.index :: processes.count]
        total = sum(place in self.todo for places in mine for place in places)
        quiet = self.config.quiet or processes.index > 0
        net, device = self.segmenter.net, self.segmenter.device
        bar = progress_bar(total=total, name="predicting", unit="image", quiet=quiet)
        with bar, explain_out_of_memory(self.config.batch_size):
            rows = predict_draws(net, self._load_batches(mine), sources=self.sources, device=device)
            wanted = (row for row in rows if row.index in self.todo)
            for _ in ordered_map(self._write, wanted, workers=self.config.workers):
                self.made += 1
                bar.update()

    def _batches(self) -> list[range]:
        """Those with something to do. They are cut from all inputs: rounding hangs on which images share a batch, and
        a run that goes on must give the bits of one that was not stopped."""
        count, size = len(self.inputs), self.config.batch_size
        cut = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [places for places in cut if not self.todo.isdisjoint(places)]

    def _sizes(self) -> dict[int, tuple[int, int]]:
        found = {}
        for place in (place for places in self._batches() for place in places):
            try:
                found[place] = picture_size(self.inputs[place].path)
            except UserError:
                continue  # told when it is read
        return found

    def _load_batches(self, mine: Iterable[range]) -> Iterator[Batch]:
        assert self.segmenter is not None
        loaded = ordered_map(self._load, (i for places in mine for i in places), workers=self.config.workers)
        for places in mine:
            readable = [(i, tensor) for i, tensor in islice(loaded, len(places)) if tensor is not None]
            if any(i in self.todo for i, _ in readable):
                at, tensors = zip(*readable, strict=True)
                names = [self.inputs[i].name for i in at]
                yield self.segmenter.batch(torch.stack(tensors), names, torch.tensor(at))

    def _load(self, place: int) -> tuple[int, Tensor | None]:
        assert self.segmenter is not None
        try:
            tensor, self.sizes[place] = self.segmenter.prepare(self.inputs[place].path)
        except UserError as error:
            self.faults[place] = str(error)
            return place, None
        return place, tensor

    def _write(self, row: RowPrediction) -> None:
        assert self.segmenter is not None
        one, size, folder = self.inputs[row.index], self.sizes[row.index], self.folder
        found = self.segmenter.finish(row, size)
        prompts = ImagePrompts(size, found.points, found.labels, found.box, row.mask_prompt, row.mask_index)
        told: dict[str, Any] = {"iou": found.iou, "seconds": round(found.seconds, 4), "area": found.area}
        for kind in self.kinds:
            if kind == CONTOUR:
                told[CONTOUR] = coco_shape(found.mask)
            elif kind == "overlay":
                picture = draw_overlay(
                    read_picture(one.path),
                    np.zeros_like(found.mask),
                    found.mask,
                    xy=prompts.xy,
                    label=prompts.label,
                    box=prompts.box,
                )
                write_png(folder.place(kind, one.name), picture)
            else:
                write_png(folder.place(kind, one.name), _grey(found.mask if kind == "mask" else found.probability))
        folder.add(one, prompts, self.kinds, **told)


def _grey(values: Bools | Float32s) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A mask as 0 and 255, a map of [0, 1] as 0 to 65535."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    return np.rint(values.astype(np.float64) * 65535).astype(np.uint16)
