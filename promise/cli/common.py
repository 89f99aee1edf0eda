"""Shared by all commands: flags generated from settings, error messages, exit statuses, logging."""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
import math
import multiprocessing
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from promise import __version__
from promise.cli.argparse_adapter import list_flags
from promise.evaluation.config import EvalConfig
from promise.runtime.errors import UserError, excerpt
from promise.runtime.settings import MAX_WORKERS, REQUIRED, Config, check_values, read_yaml
from promise.runtime.signals import SIGNALS, leave_at_once
from promise.training.config import TrainConfig

_TERMINATED = [128 + number for number in SIGNALS]  # exit statuses


class Parser(argparse.ArgumentParser):
    """Argument parser that accepts flags with underscores and prints short errors."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        """Create a parser.

        Args:
            prog: name of the command.
            description: paragraphs, separated by empty lines. Indented paragraphs are printed as they are; others are
                wrapped.
            options: arguments of ``argparse.ArgumentParser``.
        """
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=_wrap(description), formatter_class=layout, **options)
        self.required_settings: tuple[str, ...] = ()  # by a flag or by the file of --config

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: D102
        _print_any_character()
        arguments = [_to_dashes(text) for text in (sys.argv[1:] if args is None else args)]
        parsed, rest = super().parse_known_args(arguments, namespace)
        missing = [_flag(name) for name in self.required_settings if not hasattr(parsed, name)]
        if missing and not hasattr(parsed, "config"):
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Print one line, without the list of all flags, and exit with status 2."""
        is_unknown = message.startswith("unrecognized arguments")
        unknown = [word.partition("=")[0] for word in message.split() if is_unknown and word.startswith("--")]
        near = get_close_matches(unknown[0], list_flags(self), n=1) if unknown else []
        hint = f" Did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {excerpt(message)}.{hint} See {self.prog} --help.\n")


def _print_any_character() -> None:
    """Let stdout print characters that its encoding lacks as escapes, as stderr does, instead of raising errors."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _wrap(description: str) -> str:
    width = shutil.get_terminal_size().columns - 2  # as argparse does for the help of flags
    paragraphs = description.strip("\n").split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(" ".join(p.split()), width) for p in paragraphs)


def _to_dashes(text: str) -> str:
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else text


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def build_parser(command: str, description: str, kind: type[Config], *, skip: Sequence[str] = ()) -> Parser:
    """Return a parser with one flag for each field of a settings dataclass, ``--config`` and ``--version``.

    Flags that are not used are absent from the parsed namespace.

    Args:
        command: name of the command.
        description: see :class:`Parser`.
        kind: settings dataclass whose fields are :func:`promise.runtime.settings.option`.
        skip: fields without a flag.
    """
    parser = Parser(command, description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"promise-sam {__version__}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags take precedence")
    fields = [field for field in dataclasses.fields(kind) if field.name not in skip]
    hints = get_type_hints(kind)
    groups: dict[str, Any] = {}
    for field in fields:
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        groups[name].add_argument(_flag(field.name), **_arguments(field, hints[field.name]))
    parser.required_settings = tuple(field.name for field in fields if field.default is REQUIRED)
    return parser


def _arguments(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for a field."""
    text = field.metadata["help"].replace("%", "%%")
    if field.default is REQUIRED:
        text += " (required)"
    elif field.default is not None and field.default is not False and field.default != ():
        text += f" (default: {field.default})"
    inner = [a for a in get_args(hint) if a not in (type(None), ...)] or [hint]
    metavar = field.metadata["metavar"]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if getattr(hint, "__origin__", None) is tuple:
        return {"nargs": "+", "metavar": metavar or "FILE", "help": text}
    arguments: dict[str, Any] = {"type": inner[0], "help": text, "choices": field.metadata["choices"]}
    if not field.metadata["choices"]:
        arguments["metavar"] = metavar or {int: "N", float: "X"}.get(inner[0], "TEXT")
    return arguments


def finite_number(text: str) -> float:
    """The ``type`` of decimal flags that no settings dataclass declares: neither NaN nor infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def worker_count(text: str) -> int:
    """The ``type`` of ``--workers`` where no settings dataclass declares it."""
    value = int(text)
    if not 1 <= value <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"it must be at least 1 and at most {MAX_WORKERS}, got {value}")
    return value


def gather(arguments: argparse.Namespace, kind: type[Config], *, skip: Sequence[str] = ()) -> Config:
    """Combine defaults, the file of ``--config`` and flags; later ones take precedence.

    Args:
        arguments: result of a parser of :func:`build_parser`.
        kind: settings dataclass.
        skip: names in ``arguments`` that are not settings.

    Raises:
        UserError: the file cannot be read, or its values are invalid, or a required setting is missing.
    """
    from_flags = {k: v for k, v in vars(arguments).items() if k not in ("config", *skip)}
    from_file = read_yaml(Path(arguments.config), kind, others=_others(kind)) if "config" in arguments else {}
    values = {**from_file, **check_values(from_flags, kind, origin="flags")}
    missing = [f.name for f in dataclasses.fields(kind) if f.default is REQUIRED and f.name not in values]
    if missing:
        flags = ", ".join(map(_flag, missing))
        raise UserError(f"missing settings: {flags}. Use the flags or set them in --config.", code="missing-setting")
    return kind(**values)


def _others(kind: type[Any]) -> dict[str, type[Any]]:
    """Commands whose configuration could be mistaken for one of ``kind``."""
    known = {"promise-train": TrainConfig, "promise-eval": EvalConfig}
    return {command: other for command, other in known.items() if other is not kind}


def start_logging(*, quiet: bool) -> None:
    """Write log messages and warnings to stderr; with ``quiet`` warnings only. Results are printed to stdout."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_keep_text)
    for verbose in ("accelerate", "matplotlib", "PIL"):
        logging.getLogger(verbose).setLevel(logging.WARNING)


def _keep_text(record: logging.LogRecord) -> bool:
    """Reduce a Python warning to its text, without file and line of code."""
    text = record.getMessage()
    record.msg, record.args = text.splitlines()[0].split("Warning: ", 1)[-1], ()
    return True


def prepare_process() -> None:
    """Apply process-wide settings for fast computation. Only commands do so, never the library."""
    from promise.runtime.memory import keep_freed_memory

    keep_freed_memory()


def run(command: str, work: Callable[[], int]) -> int:
    """Call the function of a command and return the exit status.

    0: success. 1: invalid input or faulty data (``UserError``), or a file that may not be read. 3: partial success, if
    ``work`` returns it.
    130: interrupted. 143 or 138: ended by SIGTERM or SIGUSR1. Other exceptions are not caught.
    """
    from PIL import Image

    leave_at_once()
    Image.MAX_IMAGE_PIXELS = None  # replaced by PROMISE_MAX_PIXELS
    try:
        return work()
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:  # at a place that has no message of its own
        print(f"{command}: {error.filename or error}: permission denied.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted.", file=sys.stderr)
        return 130
    except SystemExit as error:
        if error.code in _TERMINATED:
            print(f"{command}: terminated.", file=sys.stderr)
        raise
    except BrokenPipeError:
        return 1
    finally:
        _end_workers()


def _end_workers() -> None:
    """Kill the worker processes that an error has left: they ignore SIGTERM, and Python would wait for them."""
    workers = [worker for worker in multiprocessing.active_children() if worker.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for a killed worker
    for worker in workers:
        worker.kill()
