"""``promise-predict``: read, encode, prompt, decode and write images. Interrupted runs resume."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from promise.data.dicom import is_dicom, require_pydicom
from promise.data.inputs import Input, list_inputs
from promise.data.transforms.recipes import PIXELS_VERSION
from promise.features.loader import ALONE, ProcessGroup
from promise.inference.config import PredictConfig
from promise.inference.image_work import ImageWork
from promise.inference.output_folder import CONTOUR, PROMPTS, PredictionFolder
from promise.inference.postprocess import Postprocess
from promise.models import checkpoint
from promise.models.prompters.lesions import check_settings
from promise.models.quality import LEAST_ROWS, USABLE
from promise.models.sam.weights import file_sha256
from promise.prompts.file import PromptFile
from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError, all_of
from promise.runtime.files import writing
from promise.runtime.lock import exclusive
from promise.runtime.settings import find_out_of_range

# Recorded in predict.json and compared by later runs: the value is part of the file format.
POSTPROCESS_OF_CHECKPOINT = "as the checkpoint says"


@dataclass(frozen=True)
class PredictResult:
    """The result of a run."""

    folder: Path
    images: int  # number of input images
    made: int  # number of images segmented in this run, by all processes
    failed: tuple[tuple[str, str], ...]  # (path, message)
    without_lesion: tuple[str, ...] = ()  # names of all finished images without a lesion; their masks are empty
    review: tuple[tuple[str, float | None], ...] | None = (
        None  # images to review and estimated IoU; None: not requested
    )
    doubtful: tuple[tuple[str, float], ...] = ()  # finished images with a low estimated IoU, if no review was requested
    is_main_process: bool = True  # whether this is the main process, which reports to the user


def predict(config: PredictConfig) -> PredictResult:
    """Segment images with a checkpoint, and write the results that do not exist yet.

    Images that cannot be read are listed in the result and do not stop the run.

    Raises:
        UserError: settings, files or weights that cannot be used; nothing has been written.
    """
    check_predict(config)
    folder = PredictionFolder(Path(config.output or ""))
    _, inputs, file = all_of(
        lambda: _require_checkpoint(config), lambda: _inputs(config, folder), lambda: _prompt_file(config)
    )
    if any(is_dicom(one.path) for one in inputs):
        require_pydicom()
    device, processes = _processes(config)
    settings = _settings(config, device)
    folder.check(settings, overwrite=config.overwrite)  # before a missing folder is created
    with exclusive(folder.path):  # for all processes of this launch
        folder.check(settings, overwrite=config.overwrite)
        return _predict(config, folder, inputs, file, settings, device, processes)


def _predict(
    config: PredictConfig,
    folder: PredictionFolder,
    inputs: list[Input],
    file: PromptFile | None,
    settings: Mapping[str, Any],
    device: torch.device,
    processes: ProcessGroup,
) -> PredictResult:
    kinds = _kinds(config)
    finished = [False] * len(inputs) if config.overwrite else folder.finished(inputs, kinds)
    work = ImageWork(config, folder, inputs, frozenset(i for i, done in enumerate(finished) if not done), kinds)
    if work.any_readable():
        work.load(device, file)
    processes.wait()  # until every process has inspected the folder
    if processes.index == 0:
        names = {inputs[i].name for i in work.todo} if config.overwrite else set()
        folder.prepare(settings, describe_environment(device), names)
    processes.wait()
    work.run(processes)
    made, failed = _gather(work, processes)
    with writing(folder.path):
        result = PredictResult(folder.path, len(inputs), made, tuple(failed), is_main_process=processes.index == 0)
        if result.is_main_process:
            result = replace(result, without_lesion=tuple(folder.join(file.source if file else "auto")))
            if config.review_below is not None:
                result = replace(result, review=tuple(folder.review(config.review_below)))
            else:
                result = replace(result, doubtful=tuple(folder.doubtful(USABLE)))
    processes.wait()
    return result


def _require_checkpoint(config: PredictConfig) -> None:
    path = checkpoint.require(config.ckpt or "")
    if config.review_below is None:
        return
    if path.suffix != ".safetensors" or checkpoint.read_metadata(path).quality is None:
        raise UserError(
            f"{path} has no learned estimate of the IoU: remove --review-below. promise-train fits one for nets "
            f"such as APM_dense if they find lesions in at least {LEAST_ROWS} validation images.",
            code="no-quality-estimate",
        )


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
        raise UserError(
            f"{file.path} contains prompts for {len(file.seeds)} seeds, but --prompts-from accepts one. Use one with "
            "the prompts of a single seed.",
            code="several-prompt-draws",
        )
    return file


def check_predict(config: PredictConfig) -> None:
    """Check the settings before any file is opened.

    Raises:
        UserError: all invalid settings, together.
    """
    errors: list[UserError] = []

    def report(message: str, code: str) -> None:
        errors.append(UserError(message, code=code))

    if not config.images:
        report("no images. Name files, folders, glob patterns, CSVs or lists", "missing-images")
    if config.ckpt is None:
        report(
            "--ckpt is missing: a checkpoint, such as runs/polyp/best.safetensors, or a name of --list-checkpoints",
            "missing-checkpoint-setting",
        )
    if config.output is None:
        report("--output is missing: a folder for the masks", "missing-output-setting")
    elif config.prompts_from and Path(config.prompts_from).resolve() == (Path(config.output) / PROMPTS).resolve():
        report(
            f"--prompts-from {config.prompts_from} is in --output and would be replaced: choose another --output",
            "prompts-in-output",
        )
    errors += find_out_of_range(config, code="invalid-count")
    _check_review(config.review_below, config.prompts_from, report)
    for check in (_check_postprocess, _check_lesions):
        try:
            check(config)
        except UserError as error:
            report(str(error).rstrip("."), error.code)
    if errors:
        message = "; ".join(str(error) for error in errors) + "."
        raise UserError(message, code="invalid-settings", errors=errors)


def _check_postprocess(config: PredictConfig) -> None:
    if config.postprocess not in (None, "default"):
        Postprocess.parse(config.postprocess or "")


def _check_lesions(config: PredictConfig) -> None:
    check_settings(config.lesion_settings)


def _check_review(below: float | None, prompts_from: str | None, report: Callable[[str, str], None]) -> None:
    if below is None:
        return
    if not 0 <= below <= 1:
        report(f"--review-below must be between 0 and 1, got {below:g}", "invalid-review-bound")
    if prompts_from:
        report(
            "--review-below needs the net's own prompts: the IoU of the masks of --prompts-from is not estimated",
            "review-of-prompts-file",
        )


def _kinds(config: PredictConfig) -> tuple[str, ...]:
    enabled = {"mask": True, "probability": config.probability, "overlay": config.overlay, CONTOUR: config.contour}
    return tuple(kind for kind, on in enabled.items() if on)


def _processes(config: PredictConfig) -> tuple[torch.device, ProcessGroup]:
    """The device of this process, and the group of processes among which the images are distributed."""
    device = resolve_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, ALONE
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return state.device, ProcessGroup(state.process_index, state.num_processes, state.wait_for_everyone)


def _settings(config: PredictConfig, device: torch.device) -> dict[str, Any]:
    """The settings that determine the results. Weights are identified by content, not by name."""
    return {
        "checkpoint": file_sha256(checkpoint.require(config.ckpt or "")),
        "net": config.net,
        "sam": config.sam,
        "postprocess": config.postprocess or POSTPROCESS_OF_CHECKPOINT,
        "precision": resolve_precision(config.precision, device),
        "prompts": file_sha256(Path(config.prompts_from)) if config.prompts_from else "auto",
        "pixels_version": PIXELS_VERSION,
        # Not in folders of earlier versions, so they are recorded only if they are set.
        **({} if config.max_lesions is None else {"max_lesions": config.max_lesions}),
        **({} if config.lesion_settings is None else {"lesion_settings": config.lesion_settings}),
    }


def _gather(work: ImageWork, processes: ProcessGroup) -> tuple[int, list[tuple[str, str]]]:
    """Number of images segmented by all processes, and the images that failed, in the order of the inputs."""
    counts, failures = [work.made], list(work.failures.items())
    if processes.count > 1:
        from accelerate.utils import gather_object

        counts, failures = gather_object(counts), gather_object(failures)
    return sum(counts), [(str(work.inputs[i].path), message) for i, message in sorted(failures)]
