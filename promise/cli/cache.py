"""promise-cache: list, verify and remove cached features."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from promise.cli.common import Parser, finite_number, run, start_logging
from promise.runtime.errors import UserError
from promise.runtime.settings import CACHE_DIR_HELP

DESCRIPTION = """
List, verify and remove cached features of the frozen encoder. Removed features are recomputed when they are needed.

Examples:

  promise-cache info
  promise-cache verify --delete
  promise-cache prune --older-than 30 --dry-run

promise-cache COMMAND --help lists the options of a command.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-cache", DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    info = _add_command(commands, "info", "List the feature spaces: one line per SAM, preprocessing and precision.")
    verify = _add_command(
        commands, "verify", "Compare every file with its checksum. Exit status 1: corrupted files were found and kept."
    )
    verify.add_argument("--delete", action="store_true", help="remove corrupted files (exit status 0)")
    prune = _add_command(commands, "prune", "Remove features: all, old ones, or those of named spaces.")
    which = prune.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="remove all features")
    which.add_argument(
        "--older-than", type=finite_number, metavar="DAYS", help="remove spaces that were last written so long ago"
    )
    which.add_argument(
        "--space", metavar="NAME", nargs="+", help="remove these spaces; promise-cache info lists the names"
    )
    prune.add_argument("--dry-run", action="store_true", help="list the spaces without removing them")
    for command in (info, verify, prune):
        command.add_argument("--cache-dir", metavar="FOLDER", help=CACHE_DIR_HELP)
        command.add_argument("--quiet", action="store_true", help="hide progress bars")
    return parser


def _add_command(commands: Any, name: str, text: str) -> Parser:
    parser: Parser = commands.add_parser(name, description=text, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-cache", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    from promise.features.store import cache_folder

    home = cache_folder(arguments.cache_dir)
    if home is None:
        raise UserError(
            "no home folder for the cache. Choose a folder with --cache-dir or PROMISE_FEATURES.", code="no-home"
        )
    if arguments.cache_dir and not home.is_dir():
        raise UserError(f"no folder at {home}. Check --cache-dir.", code="missing-cache-dir")
    work = {"info": _info, "verify": _verify, "prune": _prune}[arguments.command]
    return work(home, arguments)


def _info(home: Path, arguments: argparse.Namespace) -> int:
    from promise.features.store import free_bytes, list_spaces

    spaces = list_spaces(home)
    for space in spaces:
        description = space.description
        days = (time.time() - space.used) / 86400
        recipe = "" if description.get("recipe") is None else f", views of {description['recipe']}"
        print(
            f"{space.folder.name}  {space.entries:>7,} images  {space.size / 2**30:>8.2f} GiB  {days:>5.1f} days old  "
            f"{description.get('sam')} ({str(description.get('image_encoder_sha256'))[:12]}), "
            f"computed in {description.get('computed_in')}, "
            f"stored in {description.get('stored_in')}{recipe}"
        )
    total = sum(space.size for space in spaces)
    print(f"{home}: {total / 2**30:.2f} GiB, {free_bytes(home) / 2**30:.1f} GiB free")
    return 0


def _verify(home: Path, arguments: argparse.Namespace) -> int:
    from promise.features.store import files, find_corruption, list_spaces
    from promise.runtime.progress import progress_bar

    paths = [path for space in list_spaces(home) for path in files(space.folder)]
    corrupted = 0
    for path in progress_bar(paths, total=len(paths), name="checking features", unit="file", quiet=arguments.quiet):
        fault = find_corruption(path)
        if fault is not None:
            corrupted += 1
            print(fault)
            if arguments.delete:
                path.unlink(missing_ok=True)
    kept = corrupted and not arguments.delete
    print(f"{len(paths)} files, {corrupted} corrupted" + (". Remove them with --delete." if kept else ""))
    return 1 if kept else 0


def _prune(home: Path, arguments: argparse.Namespace) -> int:
    from promise.features.store import list_spaces, remove_space

    spaces = list_spaces(home)
    if arguments.space:
        unknown = sorted(set(arguments.space) - {space.folder.name for space in spaces})
        if unknown:
            raise UserError(
                f"the cache in {home} has no entry named {', '.join(unknown)}. Run promise-cache info to list "
                "the names.",
                code="unknown-space",
            )
        spaces = [space for space in spaces if space.folder.name in arguments.space]
    elif arguments.older_than is not None:
        spaces = [space for space in spaces if time.time() - space.used > arguments.older_than * 86400]
    for space in spaces:
        print(f"{'would remove' if arguments.dry_run else 'removing'} {space.folder} ({space.size / 2**30:.2f} GiB)")
        if not arguments.dry_run:
            remove_space(space)
    if not spaces:
        print("nothing to remove")
    return 0


if __name__ == "__main__":
    sys.exit(main())
