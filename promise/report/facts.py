"""What a run and its evaluations say of themselves: where they come from, and what a reader must be warned of."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promise.evaluation.reader import Evaluation
from promise.runtime.errors import MissingFileError, UserError

Facts = list[tuple[str, str]]

# What a net owes to the rows of a split, in the words of the evaluation's own warnings: each is told once.
SERVED = {
    "train": "the net was trained on",
    "val": "the net was selected on",
    "tune": "the postprocessing was chosen on",
}


@dataclass(frozen=True)
class Run:
    """A training run's folder, as far as it is there."""

    folder: Path
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float | None]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)  # of best.safetensors


@dataclass(frozen=True)
class Notice:
    """Something that a reader must know before the numbers."""

    level: str  # danger or note
    text: str


def read_run(folder: Path) -> Run | None:
    """A training run's record; ``None`` where the folder holds none, as that of an evaluation.

    Raises:
        MissingFileError: no such folder.
        UserError: a file of the run that cannot be read.
    """
    if not folder.is_dir():
        raise MissingFileError(f"no folder at {folder}. Give the --output of promise-train or promise-eval.")
    if not any((folder / name).is_file() for name in ("environment.json", "log.csv", "best.safetensors")):
        return None
    config = folder / "config.yaml"
    return Run(
        folder,
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        _read_json(folder / "environment.json"),
        _read_history(folder / "log.csv"),
        _read_metadata(folder / "best.safetensors"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no JSON of a run ({error}). Was its writing cut off?") from error


def _read_history(path: Path) -> list[dict[str, float | None]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                {name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(stream)
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is no log of a training ({error}). Was it edited?") from error


def _read_metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    from promise.models.checkpoint import read_metadata  # imports torch

    return vars(read_metadata(path))


def notices(run: Run | None, evaluations: Sequence[Evaluation]) -> list[Notice]:
    """What stands on top: leaks first, then whatever makes a number mean less than it seems to."""
    found = [*_leaks(evaluations), *_origins(evaluations)]
    if run is not None:
        found += _of_training(run)
    if any("statement" not in e.summary for e in evaluations):
        found.append(
            Notice(
                "note",
                "An evaluation here was made before intervals, sizes, misses, calibration and galleries were recorded; "
                "what it does not hold is left out. Evaluate again to have it.",
            )
        )
    return list(dict.fromkeys(found))


def _leaks(evaluations: Sequence[Evaluation]) -> Iterator[Notice]:
    for evaluation in evaluations:
        for words in evaluation.summary.get("warnings") or []:
            yield Notice("danger", str(words))
        for name, table in evaluation.summary["datasets"].items():
            for split, count in evaluation.seen(name).items():
                yield Notice(
                    "danger",
                    f"{name}: {SERVED.get(split, split)} {count} of the {table.get('images')} scored images; these "
                    "scores are no test of it.",
                )


def _origins(evaluations: Sequence[Evaluation]) -> Iterator[Notice]:
    for e in evaluations:
        if e.summary["prompts"] == "oracle":
            yield Notice("danger", f"{e.title}: prompts drawn from the ground truth are not automatic segmentation.")
        elif e.summary["prompts"] not in ("auto", "oracle"):
            yield Notice("note", f"{e.title}: the prompts are not the net's own.")
        if not e.summary["trained"] and e.summary["net"] != "SAM":
            yield Notice("danger", f"{e.title}: the net is untrained.")
        for name, table in e.summary["datasets"].items():
            if table.get("empty_truths"):
                rule = e.summary.get("empty_masks_rule", "")
                yield Notice("note", f"{name}: {table['empty_truths']} masks hold no foreground; {rule}.")


def _of_training(run: Run) -> Iterator[Notice]:
    before, after = run.environment.get("sam_sha256"), run.environment.get("sam_sha256_after")
    if before and after and before != after:
        yield Notice("note", "SAM's weights changed during training: it was not frozen.")
    for words in run.environment.get("warnings") or []:
        yield Notice("danger", str(words))
    train, val = (set(run.metadata.get("seen", {}).get(split, ())) for split in ("train", "val"))
    if train & val:
        yield Notice(
            "danger",
            f"{len(train & val)} of {len(val)} validation images are also trained on: selection saw no new image.",
        )


def provenance_of_run(run: Run) -> Facts:
    """Command, versions, hashes of a training."""
    seen = run.metadata.get("seen") or {}
    facts = [
        ("folder", str(run.folder)),
        *_machine(run.environment),
        *_picked(run.metadata, {"net": "net", "sam": "SAM", "num_points": "points", "freeze": "freeze switch"}),
        ("seed", _text(run.environment.get("seed", run.metadata.get("seed")))),
        ("epoch of the checkpoint", _text(run.metadata.get("epoch"))),
        *_picked(run.metadata, {"postprocess": "postprocessing chosen on val rows", "tuning": "how it was chosen"}),
        ("SAM, SHA-256 before", _text(run.environment.get("sam_sha256", run.metadata.get("sam_sha256")))),
        ("SAM, SHA-256 after", _text(run.environment.get("sam_sha256_after"))),
        *((f"{split} images, SHA-256 of their hashes", _digest(hashes)) for split, hashes in seen.items()),
    ]
    return [fact for fact in facts if fact[1]]


def provenance_of_evaluation(evaluation: Evaluation) -> Facts:
    """Command, versions, hashes, prompts and postprocessing of an evaluation."""
    summary = evaluation.summary
    draws = next((t.get("draws") for t in summary["datasets"].values() if t.get("draws")), None) or {}
    facts = [
        ("folder", str(evaluation.folder)),
        *_machine(summary.get("environment") or {}),
        *_picked(summary, {"net": "net", "sam": "SAM", "checkpoint": "checkpoint", "epoch": "its epoch"}),
        ("prompts", f"{summary['prompts']} ({summary.get('prompt_source', 'source not recorded')})"),
        *_picked(summary, {"num_points": "points", "precision": "precision", "recipe": "pixel recipe"}),
        ("prompt files", _text(summary.get("prompt_files"))),
        ("seed", _text(summary.get("seed"))),
        ("seeds of the prompt draws", _text(draws.get("seeds"))),
        ("postprocessing", _text(summary["postprocess"])),
        ("postprocessing comes from", _text(summary.get("postprocess_source"))),
        ("SAM, SHA-256", _text(summary.get("sam_sha256"))),
        *((f"{name}, hash of images and masks", _text(t.get("data_hash"))) for name, t in summary["datasets"].items()),
        ("bootstrap", _text(summary.get("bootstrap"))),
    ]
    return [fact for fact in facts if fact[1]]


def _machine(environment: Mapping[str, Any]) -> Facts:
    command = environment.get("command")
    packages = environment.get("packages")
    return [
        ("command", shlex.join(map(str, command)) if isinstance(command, list) else _text(command)),
        ("git commit", _text(environment.get("git_commit"))),
        ("versions", _text({"python": environment.get("python"), **packages} if isinstance(packages, dict) else None)),
        ("device", _text(environment.get("device"))),
    ]


def _picked(values: Mapping[str, Any], names: Mapping[str, str]) -> Facts:
    return [(title, _text(values.get(key))) for key, title in names.items()]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _digest(hashes: Sequence[str]) -> str:
    """One hash of many, whatever their order; nothing of none."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest() + f" ({len(hashes)} images)" if hashes else ""
