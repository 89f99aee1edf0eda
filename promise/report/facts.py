"""Facts of a run and its evaluations: provenance, and messages for the top of the page."""

from __future__ import annotations

import csv
import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promise.evaluation.config import EMPTY_RULES
from promise.evaluation.reader import Evaluation
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.notices import OTHER_TUNING, SHARED, TEXTS, Notice, describe, from_json, from_text, unique
from promise.runtime.reading import parse_json

Facts = list[tuple[str, str]]

# Texts of the notices that only the report makes; those of an evaluation have theirs in promise.runtime.notices.
_TEXTS = {
    **TEXTS,
    "oracle-prompts": "{title}: the prompts are drawn from the ground truth; this is not automatic segmentation.",
    "external-prompts": "{title}: the prompts do not come from the net.",
    "untrained-net": "{title}: the net is untrained.",
    OTHER_TUNING: f"{{title}}: {TEXTS[OTHER_TUNING]}",
    "empty-ground-truth": "{dataset}: images with an empty ground truth: {images}; {rule}.",
    "sam-changed": "The weights of SAM changed during training: SAM was not frozen.",
    "earlier-version": (
        "An evaluation was made by an earlier version, which recorded no intervals, size classes, misses, calibration "
        "or gallery; these are omitted. Run promise-eval again to add them."
    ),
}
# Codes of notices that do not put the scores in doubt.
_MINOR = {"external-prompts", "empty-ground-truth", "sam-changed", "earlier-version", OTHER_TUNING}


@dataclass(frozen=True)
class Run:
    """The folder of a training run; fields of missing files are empty."""

    folder: Path
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float | None]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)  # of best.safetensors


@dataclass(frozen=True)
class Message:
    """A message at the top of the page."""

    level: str  # danger or note
    text: str


def read_run(folder: Path) -> Run | None:
    """Read the files of a training run; ``None`` where the folder is not that of a training run.

    Raises:
        MissingFileError: the folder does not exist.
        UserError: a file of the run cannot be read.
    """
    if not folder.is_dir():
        raise MissingFileError(
            f"no folder at {folder}. Name the output folder of promise-train or promise-eval.", code="missing-folder"
        )
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
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). The training may have been interrupted while it was written: resume "
            "the run.",
            code="invalid-environment",
        ) from error


def _read_history(path: Path) -> list[dict[str, float | None]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                {name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(stream)
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is not a training log ({error}). Was it edited?", code="invalid-log") from error


def _read_metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    from promise.models.checkpoint import read_metadata  # imports torch

    return vars(read_metadata(path))


def notices(run: Run | None, evaluations: Sequence[Evaluation]) -> list[Message]:
    """The messages at the top of the page, warnings before notes."""
    found = [*_of_evaluations(evaluations), *_origins(evaluations)]
    if run is not None:
        found += _of_training(run)
    if any("statement" not in e.summary for e in evaluations):
        found.append(Notice("earlier-version", {}))
    messages = [Message("note" if n.code in _MINOR else "danger", describe(n, _TEXTS)) for n in unique(found)]
    return sorted(messages, key=lambda message: message.level)


def _of_evaluations(evaluations: Sequence[Evaluation]) -> Iterator[Notice]:
    for e in evaluations:
        for notice in e.notices:
            yield Notice(notice.code, {"title": e.title, **notice.data}) if notice.code == OTHER_TUNING else notice


def _origins(evaluations: Sequence[Evaluation]) -> Iterator[Notice]:
    for e in evaluations:
        if e.summary["prompts"] == "oracle":
            yield Notice("oracle-prompts", {"title": e.title})
        elif e.summary["prompts"] != "auto":
            yield Notice("external-prompts", {"title": e.title})
        if not e.summary["trained"] and e.summary["net"] != "SAM":
            yield Notice("untrained-net", {"title": e.title})
        for name, table in e.summary["datasets"].items():
            if table.get("empty_truths"):
                rule = EMPTY_RULES.get(e.summary.get("empty_masks", ""), e.summary.get("empty_masks_rule", ""))
                yield Notice("empty-ground-truth", {"dataset": name, "images": table["empty_truths"], "rule": rule})


def _of_training(run: Run) -> Iterator[Notice]:
    before, after = run.environment.get("sam_sha256"), run.environment.get("sam_sha256_after")
    if before and after and before != after:
        yield Notice("sam-changed", {})
    entries, texts = run.environment.get("notices"), run.environment.get("warnings") or []
    recorded = [from_text(str(text)) for text in texts] if entries is None else [from_json(one) for one in entries]
    yield from recorded
    train, val = (set(run.metadata.get("seen", {}).get(split, ())) for split in ("train", "val"))
    if train & val and SHARED not in {notice.code for notice in recorded}:
        yield Notice(SHARED, {"images": len(train & val), "of": len(val)})


def provenance_of_run(run: Run) -> Facts:
    """Command, versions and hashes of a training run."""
    seen = run.metadata.get("seen") or {}
    facts = [
        ("folder", str(run.folder)),
        *_machine(run.environment),
        *_picked(
            run.metadata, {"net": "net", "sam": "SAM", "num_points": "number of points", "freeze": "frozen parts"}
        ),
        ("seed", _text(run.environment.get("seed", run.metadata.get("seed")))),
        ("epoch of the checkpoint", _text(run.metadata.get("epoch"))),
        *_picked(
            run.metadata, {"postprocess": "postprocessing chosen on val rows", "tuning": "choice of the postprocessing"}
        ),
        ("SAM, SHA-256 before training", _text(run.environment.get("sam_sha256", run.metadata.get("sam_sha256")))),
        ("SAM, SHA-256 after training", _text(run.environment.get("sam_sha256_after"))),
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
        *_picked(summary, {"net": "net", "sam": "SAM", "checkpoint": "checkpoint", "epoch": "epoch of the checkpoint"}),
        ("prompts", f"{summary['prompts']} ({summary.get('prompt_source', 'source not recorded')})"),
        *_picked(summary, {"num_points": "number of points", "precision": "precision", "recipe": "pixel recipe"}),
        ("lesion settings", _text(summary.get("lesions"))),
        ("prompt files", _text(summary.get("prompt_files"))),
        ("seed", _text(summary.get("seed"))),
        ("seeds of the draws of prompts", _text(draws.get("seeds"))),
        ("postprocessing", _text(summary["postprocess"])),
        ("source of the postprocessing", _text(summary.get("postprocess_source"))),
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
    """One hash of a set of hashes, independent of their order; an empty string for none."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest() + f" ({len(hashes)} images)" if hashes else ""
