"""promise-completion: a shell script that completes the flags of all commands; made from their own parsers."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

import promise.cli
from promise.cli.common import Parser, run

SHELLS = ("bash", "zsh")
DESCRIPTION = """Print a script that lets TAB complete the flags, choices and files of all commands. It takes a few
seconds to make, so keep it in a file. For bash:

  promise-completion bash > ~/.promise-completion.bash
  echo 'source ~/.promise-completion.bash' >> ~/.bashrc

For zsh, below the line with compinit:

  promise-completion zsh > ~/.promise-completion.zsh
  echo 'eval "$(<~/.promise-completion.zsh)"' >> ~/.zshrc

Make it again after an update."""


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        "promise-completion",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to run it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
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
        if arguments.shell == "bash":  # files where nothing else is known; shtab alone offers no flags after --csv FILE
            print(f"complete -o bashdefault -o default -F _shtab_{name} {parser.prog}")
    return 0


def command_parsers() -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, by name."""
    for module in pkgutil.iter_modules(promise.cli.__path__):
        if module.name != "common":
            yield importlib.import_module(f"promise.cli.{module.name}").make_parser()


def _describe(parser: argparse.ArgumentParser, names: Mapping[str, Collection[str]]) -> None:
    """Say what TAB offers as a value: the names of a table, or files; numbers have nothing to offer."""
    for action in parser._actions:
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
