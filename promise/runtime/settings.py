"""Settings as frozen dataclasses: options, YAML files, overrides; imports no torch, so that ``--help`` is instant.

A recipe's settings are beside it (``training/config.py``, ``evaluation/config.py``, ``inference/config.py``). The
metadata of a field has its help text and, where the choice is closed, its choices; the commands make their flags of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.files import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")  # a frozen dataclass whose fields are options


def option(default: Any, text: str, *, choices: tuple[str, ...] | None = None, group: str = "") -> Any:
    """A field with its default, its help text and its choices."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "group": group})


# Choices that more than one command has; here, since naming them must not import torch.
SPLITS = ("train", "val", "test")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CACHES = ("off", "eval", "all")
CACHE_DTYPES = ("auto", "fp32", "bf16")
CACHE_DIR_HELP = (
    "folder of cached features; default: $PROMISE_FEATURES, else promise/features in the user's cache folder"
)
CACHE_DTYPE_HELP = "what features are stored in; auto: what they are computed in, so that nothing is lost"


def read_yaml(path: Path, kind: type[Any], *, others: Mapping[str, type[Any]] | None = None) -> dict[str, Any]:
    """Read settings from a YAML file, checked against the fields of ``kind``.

    Args:
        path: the file.
        kind: a dataclass whose fields are options.
        others: command → the dataclass of its configuration: what the file may be instead.

    Raises:
        MissingFileError: no such file.
        UserError: not a mapping, unknown keys (with the nearest known) or values of the wrong type, all at once.
    """
    if not path.is_file():
        raise MissingFileError(f"no configuration at {path}. Is the path right?")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold 'key: value' lines, it holds {type(loaded).__name__}.")
    own = {f.name for f in dataclasses.fields(kind)}
    strange = [str(key) for key in loaded if key not in own]
    for command, other in (others or {}).items():
        if len(strange) > 1 and set(strange) <= {f.name for f in dataclasses.fields(other)}:
            raise UserError(f"{path} is a configuration for {command} (it sets {', '.join(strange[:4])}).")
    return check_values(loaded, kind, origin=str(path))


def check_values(values: Mapping[str, Any], kind: type[Any], *, origin: str) -> dict[str, Any]:
    """Bring values to the types of ``kind``'s fields; all faults are raised at once."""
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    checked: dict[str, Any] = {}
    faults = []
    for key, value in values.items():
        if key not in fields:
            known = {**{name: name for name in fields}, **{a: n for a, n in _OTHER_NAMES.items() if n in fields}}
            near = [known[n] for n in difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)]
            faults.append(f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else ""))
            continue
        try:
            checked[key] = _coerce(value, hints[key])
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{key}: {value!r} is not {_type_name(hints[key])}")
            continue
        choices = fields[key].metadata["choices"]
        if choices and checked[key] is not None and checked[key] not in choices:
            faults.append(f"{key}: {value!r} is none of {', '.join(choices)}")
    if faults:
        raise UserError(f"{origin}: {'; '.join(faults)}.")
    return checked


# What others call it, for the hint.
_OTHER_NAMES = {"learning_rate": "lr", "backbone": "sam", "model": "net", "model_name": "net", "num_workers": "workers"}


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
    return hint(value)  # float("1e-5") too: YAML 1.1 reads that as a text


def _type_name(hint: Any) -> str:
    inner = [a for a in get_args(hint) if a is not type(None)] or [hint]
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(inner[0], "a text")


def write_yaml(path: Path, config: Any) -> None:
    """Write all settings as YAML, in the order of the fields."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
