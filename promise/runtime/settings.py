"""Settings as frozen dataclasses: help texts, YAML files, type checks. Imports no torch, so that ``--help`` is fast.

The settings of each command are defined beside its code (``training/config.py``, ``evaluation/config.py``, …). The
commands generate their flags from the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from promise.runtime.errors import SHOWN, MissingFileError, UserError, unknown_name
from promise.runtime.files import write_text
from promise.runtime.reading import require_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")  # a frozen dataclass whose fields are options


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    group: str = "",
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Define a field of a settings dataclass.

    Args:
        default: default value; :data:`REQUIRED` if there is none.
        text: help text.
        choices: allowed values; ``None`` for any.
        group: heading in the help text of the command.
        metavar: name of the value in the help text; default: by type.
        least: smallest number; see :func:`find_out_of_range`.
        most: largest number; default: none for decimal numbers, :data:`MAX_NUMBER` for whole numbers.
    """
    metadata = {"help": text, "choices": choices, "group": group, "metavar": metavar, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


REQUIRED = dataclasses.MISSING  # default of an option that must be set

# Limits and values that several commands accept. They are defined here because listing them must not import torch.
MAX_NUMBER = 2**31 - 1  # of whole numbers without a limit of their own
MAX_SEED = 2**63 - 1  # numpy takes no negative seeds, torch none above 64 bits
MAX_POINTS = 1024  # of one lesion; the memory of the decoder grows with their square
MAX_IMAGE_POINTS = 4 * MAX_POINTS  # of all lesions of one image
MAX_WORKERS = 256  # processes or threads
MAX_CONFIG = 2**16  # bytes of a configuration
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
        UserError: the file is too large, no YAML, not a mapping, belongs to another command, or has unknown or
            duplicate keys or values of the wrong type. All unknown keys and wrong values are reported together.
    """
    require_file(path, MissingFileError(f"no configuration at {path}. Check the path.", code="missing-config"))
    if path.stat().st_size > MAX_CONFIG:
        raise UserError(
            f"{path} is larger than {MAX_CONFIG // 2**10} KiB: a configuration consists of a few lines 'key: value'.",
            code="config-too-large",
        )
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.", code="config-not-utf8") from error
    except RecursionError:
        raise UserError(
            f"{path} is nested too deeply: a configuration consists of lines 'key: value'.", code="config-not-yaml"
        ) from None
    except Exception as error:  # PyYAML raises many types of exceptions for values that it cannot convert
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}", code="config-not-yaml") from error
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path} must contain 'key: value' lines, not {type(loaded).__name__}.",
            code="config-not-a-mapping",
        )
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = [_text(key) for key in loaded if key not in known]
    for command, other in (others or {}).items():
        if len(unknown) > 1 and set(unknown) <= {f.name for f in dataclasses.fields(other)}:
            raise UserError(
                f"{path} is a configuration for {command} (it sets {', '.join(unknown[:4])}).",
                code="config-of-another-command",
            )
    return check_values(loaded, kind, origin=str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without references to lists, which can stand for gigabytes, and without duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_reference = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_reference and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError("references (*name) to lists and mappings are not accepted: write the values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [one.value for one, _ in node.value if isinstance(one, yaml.ScalarNode)]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} occurs twice: delete one of the lines")
        return super().construct_mapping(node, deep)


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
            errors.append(UserError(f"{key}: {_show(value)} is not {_type_name(hints[key])}", code="wrong-type"))
            continue
        choices = fields[key].metadata["choices"]
        if choices and checked[key] is not None and checked[key] not in choices:
            errors.append(UserError(f"{key}: {_show(value)} is not one of {', '.join(choices)}", code="unknown-choice"))
    if errors:
        shown = [str(error) for error in errors[:SHOWN]]
        shown += [f"and {len(errors) - SHOWN} more faults"] * (len(errors) > SHOWN)
        raise UserError(f"{origin}: {'; '.join(shown)}.", code=errors[0].code, errors=errors)
    return checked


def find_out_of_range(config: Any, *, code: str = "out-of-range") -> list[UserError]:
    """One error for each number that is not finite or not between the ``least`` and ``most`` of its :func:`option`.

    Args:
        config: settings whose fields are options.
        code: code of the errors.
    """
    errors = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, most = field.metadata["least"], field.metadata["most"]
        if most is None and isinstance(value, int):
            most = MAX_NUMBER
        fault = None
        if least is not None and not value >= least:  # written so that NaN fails too
            fault = f"at least {least}"
        elif most is not None and not value <= most:
            fault = f"at most {most}"
        elif not math.isfinite(value):
            fault = "a finite number"
        if fault is not None:
            flag = field.name.replace("_", "-")
            errors.append(UserError(f"--{flag} must be {fault}, got {_show(value)}", code=code))
    return errors


def _show(value: object) -> str:
    """The value as a message shows it, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer with thousands of digits
        return "a number with thousands of digits"


def _text(key: object) -> str:
    return key if isinstance(key, str) else _show(key)


# Names of settings in other packages → the name here, for the hint.
_SYNONYMS = {"learning_rate": "lr", "backbone": "sam", "model": "net", "model_name": "net", "num_workers": "workers"}


def _unknown_setting(key: object, fields: Mapping[str, Any]) -> UserError:
    known = {**{name: name for name in fields}, **{a: n for a, n in _SYNONYMS.items() if n in fields}}
    near = [known[n] for n in difflib.get_close_matches(_text(key), known, n=1, cutoff=0.6)]
    return UserError(
        f"unknown key {_show(key)}" + (f", did you mean {near[0]!r}?" if near else ""), code="unknown-setting"
    )


def _coerce(value: Any, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _coerce(value, next(a for a in get_args(hint) if a is not type(None)))
    if get_origin(hint) is tuple:
        return tuple(_coerce(v, str) for v in ([value] if isinstance(value, str) else value))
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool) or value is None:
        raise TypeError
    if isinstance(value, list | dict | set | tuple):
        raise TypeError
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    converted = hint(value)  # also float("1e-5"), which YAML 1.1 reads as text
    if hint is float and not math.isfinite(converted):
        raise ValueError
    return converted


def _type_name(hint: Any) -> str:
    inner = [a for a in get_args(hint) if a is not type(None)] or [hint]
    return {bool: "true or false", int: "a whole number", float: "a finite number"}.get(inner[0], "a text")


def write_yaml(path: Path, config: Any) -> None:
    """Write all settings as YAML, in the order of the fields."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
