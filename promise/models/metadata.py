"""The metadata of a checkpoint: what is needed to rebuild its net, and their check when they are read."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from promise.models.prompters.base import fixed_labels
from promise.runtime.errors import SHOWN, UserError
from promise.runtime.reading import parse_json
from promise.runtime.settings import MAX_SEED, freeze_code


@dataclass(frozen=True)
class Metadata:
    """What is needed to rebuild the net of a checkpoint, and how it was trained and scored."""

    net: str
    sam: str
    num_points: int
    sam_sha256: str  # of the base SAM's weights before training
    point_labels: tuple[int, ...] | None = None
    freeze: str = "FZ0"
    seed: int | None = None
    epoch: int | None = None
    sam_checkpoint: str = "auto"  # "auto", "random", or the name of the file
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    # split → content hashes of its images; "tune": images that the postprocessing was selected on
    seen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    postprocess: str | None = None  # selected by promise-eval --tune-postprocess
    tuning: Mapping[str, Any] = field(default_factory=dict)  # how it was selected
    lesions: Mapping[str, Any] | None = None  # settings of a net that finds lesions; see LesionSettings
    quality: Mapping[str, Any] | None = None  # estimate of the IoU of automatic masks; see QualityEstimate


def parse_metadata(path: Path | str, text: str) -> Metadata:
    """Read the JSON of the metadata of a file, which other programs may have written.

    Raises:
        UserError: all faults of keys and types in one error (``invalid-metadata``).
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise _invalid_metadata(path, [f"no JSON ({error})"]) from error
    if not isinstance(values, dict):
        raise _invalid_metadata(path, [f"no JSON object, but {type(values).__name__}"])
    faults = _find_faults(values)
    if faults:
        raise _invalid_metadata(path, faults)
    if values.get("point_labels") is not None:
        values["point_labels"] = tuple(values["point_labels"])
    metadata = Metadata(**values)
    try:
        fixed_labels(metadata.num_points, metadata.point_labels)
        freeze_code(metadata.freeze)
    except UserError as error:
        raise _invalid_metadata(path, [str(error).rstrip(".")]) from error
    return metadata


def _find_faults(values: Mapping[str, Any]) -> list[str]:
    """Unknown and missing keys, and values of the wrong type."""
    known = {one.name: one for one in fields(Metadata)}
    hints = get_type_hints(Metadata)
    faults = [f"unknown key {reprlib.repr(name)}" for name in values if name not in known]
    for name, one in known.items():
        if name in values and not has_type(values[name], hints[name]):
            faults.append(f"{name} is {reprlib.repr(values[name])}")
        elif name not in values and one.default is MISSING and one.default_factory is MISSING:
            faults.append(f"{name} is missing")
    if not faults and not isinstance(values.get("config", {}).get("augment"), str | None):
        faults.append("config.augment is no text")
    if not faults and not 0 <= (values.get("seed") or 0) <= MAX_SEED:
        faults.append(f"seed is {reprlib.repr(values['seed'])}")
    return faults


def _invalid_metadata(path: Path | str, faults: Sequence[str]) -> UserError:
    return UserError(
        f"{path} has invalid metadata: {'; '.join(faults[:SHOWN])}. Was it written by a later version of this "
        "package, or changed by another program? Copy the original file again.",
        code="invalid-metadata",
    )


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON has the type of a field of :class:`Metadata`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(has_type(value, one) for one in inner)
    if origin is Mapping:
        return isinstance(value, dict) and all(has_type(one, inner[1]) for one in value.values())
    if origin in (tuple, Sequence):
        return isinstance(value, list) and all(has_type(one, inner[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint or (value is None and hint is type(None))
