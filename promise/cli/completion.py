"""promise-completion: shell script that completes the flags of all commands, generated from their parsers."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

import promise.cli
from promise.cli.argparse_adapter import list_actions
from promise.cli.common import Parser, run

SHELLS = ("bash", "zsh")
DESCRIPTION = """
Print a shell script that completes the flags, choices and files of all commands when TAB is pressed. Generating it
takes a few seconds: store it in a file, and generate it again after an update. For bash:

  promise-completion bash > ~/.promise-completion.bash
  echo 'source ~/.promise-completion.bash' >> ~/.bashrc

For zsh, below the line with compinit:

  promise-completion zsh > ~/.promise-completion.zsh
  echo 'eval "$(<~/.promise-completion.zsh)"' >> ~/.zshrc
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-completion", DESCRIPTION, allow_abbrev=False)
    parser.add_argument("shell", choices=SHELLS, help="shell that runs the script")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-completion", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    import shtab

    from promise.models.registry import NETS
    from promise.models.sam.backbones import BACKBONES

    for parser in command_parsers():
        _describe(parser, {"net": NETS, "sam": BACKBONES})
        name = parser.prog.replace("-", "_")
        print(shtab.complete(parser, shell=arguments.shell, root_prefix=name))
        if arguments.shell == "bash":  # complete files where nothing else matches, and flags after --csv FILE
            print(f"complete -o bashdefault -o default -F _shtab_{name} {parser.prog}")
    return 0


def command_parsers() -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands: the modules of ``promise.cli`` that define ``make_parser``."""
    for found in pkgutil.iter_modules(promise.cli.__path__):
        module = importlib.import_module(f"promise.cli.{found.name}")
        if hasattr(module, "make_parser"):
            yield module.make_parser()


def _describe(parser: argparse.ArgumentParser, names: Mapping[str, Collection[str]]) -> None:
    """Set the completions of values: names of a table, or files. Numbers have none."""
    for action in list_actions(parser):
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                _describe(inner, names)
        elif action.choices is None and action.nargs != 0 and action.type not in (int, float):
            if action.dest in names:
                action.choices = list(names[action.dest])
            else:
                action.complete = {"zsh": "_files"}  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
