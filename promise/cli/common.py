"""What all commands share: flags from a configuration's fields, errors as one message, exit statuses."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args, get_type_hints

from promise import __version__
from promise.evaluation.config import EvalConfig
from promise.runtime.errors import UserError
from promise.runtime.settings import Config, check_values, read_yaml
from promise.training.config import TrainConfig


class Parser(argparse.ArgumentParser):
    """Understands flags spelt with underscores, as the original's are, and tells a mistake in one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: D102
        given = [_dashes(text) for text in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """One line instead of all flags, which hide it; status 2."""
        unknown = message.startswith("unrecognized arguments")
        wrong = [word.partition("=")[0] for word in message.split() if unknown and word.startswith("--")]
        known = [flag for action in self._actions for flag in action.option_strings]
        near = get_close_matches(wrong[0], known, n=1) if wrong else []
        hint = f" Did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}.{hint} See {self.prog} --help.\n")


def _dashes(text: str) -> str:
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else text


def build_parser(
    command: str, description: str, kind: type[Config], *, skip: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser with one flag a field of ``kind``; flags that are not given leave no trace."""
    parser = Parser(prog=command, description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"promise-sam {__version__}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags override it")
    hints = get_type_hints(kind)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        groups[name].add_argument(f"--{field.name.replace('_', '-')}", **_arguments(field, hints[field.name]))
    return parser


def _arguments(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    text = field.metadata["help"].replace("%", "%%")
    if field.default is not None and field.default is not False and field.default != ():
        text += f" (default: {field.default})"
    inner = [a for a in get_args(hint) if a not in (type(None), ...)] or [hint]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if getattr(hint, "__origin__", None) is tuple:
        return {"nargs": "+", "metavar": "FILE", "help": text}
    arguments: dict[str, Any] = {"type": inner[0], "help": text, "choices": field.metadata["choices"]}
    if not field.metadata["choices"]:
        arguments["metavar"] = {int: "N", float: "X"}.get(inner[0], "…")
    return arguments


def gather(arguments: argparse.Namespace, kind: type[Config], *, skip: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file of ``--config``, then flags."""
    given = {k: v for k, v in vars(arguments).items() if k not in ("config", *skip)}
    from_file = read_yaml(Path(arguments.config), kind, others=_others(kind)) if "config" in arguments else {}
    return kind(**{**from_file, **check_values(given, kind, origin="flags")})


def _others(kind: type[Any]) -> dict[str, type[Any]]:
    """The configurations that a file may be instead of ``kind``."""
    known = {"promise-train": TrainConfig, "promise-eval": EvalConfig}
    return {command: other for command, other in known.items() if other is not kind}


TERMINATED = 128 + signal.SIGTERM  # exit status


def start_logging(*, quiet: bool) -> None:
    """Messages go to stderr, results to stdout."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_first_line)
    for chatty in ("accelerate", "matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _first_line(record: logging.LogRecord) -> bool:
    """Show a warning's text, not the line of code it came from."""
    text = record.getMessage()
    record.msg, record.args = text.splitlines()[0].split("Warning: ", 1)[-1], ()
    return True


def prepare_process() -> None:
    """Settings of this process that computing profits from; the library never makes them by itself."""
    from promise.runtime.memory import keep_freed_memory

    keep_freed_memory()


def run(command: str, work: Callable[[], int]) -> int:
    """Do a command's work and turn what goes wrong into an exit status.

    0 done; 1 a user's mistake or a fault in the data; what ``work`` returns, such as 3 for done in part;
    130 interrupted, 143 terminated.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted.", file=sys.stderr)
        return 130
    except SystemExit as error:
        if error.code == TERMINATED:
            print(f"{command}: terminated.", file=sys.stderr)
        raise
    except BrokenPipeError:
        return 1


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
