"""Settings as frozen dataclasses: help texts, YAML files, type checks. Imports no torch, so that ``--help`` is fast.

The settings of each command are defined beside its code (``training/config.py``, ``evaluation/config.py``, …). The
commands generate their flags from the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from promise.runtime.errors import MissingFileError, UserError, unknown_name
from promise.runtime.files import require_file, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")  # a frozen dataclass whose fields are options


def option(
    default: Any, text: str, *, choices: tuple[str, ...] | None = None, group: str = "", metavar: str | None = None
) -> Any:
    """Define a field of a settings dataclass.

    Args:
        default: default value; :data:`REQUIRED` if there is none.
        text: help text.
        choices: allowed values; ``None`` for any.
        group: heading in the help text of the command.
        metavar: name of the value in the help text; default: by type.
    """
    metadata = {"help": text, "choices": choices, "group": group, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


REQUIRED = dataclasses.MISSING  # default of an option that must be set

# Values that several commands accept. They are defined here because listing them must not import torch.
SPLITS = ("train", "val", "test")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# What of SAM stays frozen → the reference implementation's code, which run folders and checkpoints store.
FREEZE_ALIASES: dict[str, str] = {
    "all": "FZ0",
    "encoder+decoder": "FZ1",
    "encoders": "FZ2",
    "encoder": "FZ3",
    "none": "FZ4",
}
CACHES = ("off", "eval", "all")
CACHE_DTYPES = ("auto", "fp32", "bf16")
FEATURE_AUGMENTS = ("none", "flips", "symmetries", "affine")
CACHE_DIR_HELP = (
    "folder of cached features; default: $PROMISE_FEATURES, else promise/features in the cache folder of the user"
)
CACHE_DTYPE_HELP = "data type of cached features; auto: the precision in which they are computed, without loss"
DATA_ROOT_HELP = "folder in which the paths in CSVs are looked up, including absolute paths from another machine"
DEVICE_HELP = "auto, cpu, cuda, cuda:1 or mps"
MAX_LESIONS_HELP = (
    "largest number of lesions that the net prompts in an image, for nets that find lesions, such as APM_dense; "
    "default: as stored in the checkpoint"
)
CKPT_HELP = (
    "checkpoint of promise-train (.safetensors), or of the reference implementation (.pt, .pth), or name of a bundled "
    "checkpoint (promise-predict --list-checkpoints)"
)
LESION_SETTINGS_HELP = (
    "how lesions are found and decoded by nets that find lesions, such as threshold=0.4,fuse=0,prompts=box+points; "
    "the names are those of promise.models.prompters.lesions.LesionSettings; default: as stored in the checkpoint"
)
PRECISION_HELP = "auto: bf16 where the device supports it in hardware"


def freeze_code(name: str) -> str:
    """The code (``FZ0`` … ``FZ4``) of a freeze switch.

    Args:
        name: a key of :data:`FREEZE_ALIASES`, which names the frozen parts, or a code.

    Raises:
        UserError: unknown; lists the readable names (code ``unknown-freeze-switch``).
    """
    if name not in FREEZE_ALIASES and name not in FREEZE_ALIASES.values():
        raise unknown_name("freeze switch", name, FREEZE_ALIASES)
    return FREEZE_ALIASES.get(name, name)


def read_yaml(path: Path, kind: type[Any], *, others: Mapping[str, type[Any]] | None = None) -> dict[str, Any]:
    """Read settings from a YAML file and check them against the fields of a dataclass.

    Args:
        path: YAML file.
        kind: dataclass whose fields are options.
        others: command → settings dataclass of that command, to recognise a file that belongs to another command.

    Returns:
        Setting → value, for the settings in the file only.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a mapping, belongs to another command, or has unknown keys or values of the wrong
            type. All keys and values are reported together.
    """
    require_file(path, MissingFileError(f"no configuration at {path}. Check the path.", code="missing-config"))
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.", code="config-not-utf8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}", code="config-not-yaml") from error
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path} must contain 'key: value' lines, not {type(loaded).__name__}.",
            code="config-not-a-mapping",
        )
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = [str(key) for key in loaded if key not in known]
    for command, other in (others or {}).items():
        if len(unknown) > 1 and set(unknown) <= {f.name for f in dataclasses.fields(other)}:
            raise UserError(
                f"{path} is a configuration for {command} (it sets {', '.join(unknown[:4])}).",
                code="config-of-another-command",
            )
    return check_values(loaded, kind, origin=str(path))


def check_values(values: Mapping[str, Any], kind: type[Any], *, origin: str) -> dict[str, Any]:
    """Convert values to the types of the fields of a dataclass.

    Args:
        values: setting → value.
        kind: dataclass whose fields are options.
        origin: where the values come from, for error messages: a file, or ``flags``.

    Raises:
        UserError: unknown keys (with the closest known one), values of the wrong type, or values that are not among the
            choices. All are reported together, with codes ``unknown-setting``, ``wrong-type`` and ``unknown-choice``.
    """
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    errors = []
    for key, value in values.items():
        if key not in fields:
            errors.append(_unknown_setting(key, fields))
            continue
        try:
            checked[key] = _coerce(value, hints[key])
        except (TypeError, ValueError, OverflowError):
            errors.append(UserError(f"{key}: {value!r} is not {_type_name(hints[key])}", code="wrong-type"))
            continue
        choices = fields[key].metadata["choices"]
        if choices and checked[key] is not None and checked[key] not in choices:
            errors.append(UserError(f"{key}: {value!r} is not one of {', '.join(choices)}", code="unknown-choice"))
    if errors:
        raise UserError(f"{origin}: {'; '.join(map(str, errors))}.", code=errors[0].code, errors=errors)
    return checked


# Names of settings in other packages → the name here, for the hint.
_SYNONYMS = {"learning_rate": "lr", "backbone": "sam", "model": "net", "model_name": "net", "num_workers": "workers"}


def _unknown_setting(key: object, fields: Mapping[str, Any]) -> UserError:
    known = {**{name: name for name in fields}, **{a: n for a, n in _SYNONYMS.items() if n in fields}}
    near = [known[n] for n in difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)]
    return UserError(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""), code="unknown-setting")


def _coerce(value: Any, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _coerce(value, next(a for a in get_args(hint) if a is not type(None)))
    if get_origin(hint) is tuple:
        return tuple(str(v) for v in ([value] if isinstance(value, str) else value))
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool) or value is None:
        raise TypeError
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return hint(value)  # also float("1e-5"), which YAML 1.1 reads as text


def _type_name(hint: Any) -> str:
    inner = [a for a in get_args(hint) if a is not type(None)] or [hint]
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(inner[0], "a text")


def write_yaml(path: Path, config: Any) -> None:
    """Write all settings as YAML, in the order of the fields."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
