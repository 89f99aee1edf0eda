"""promise-cache: what lies in the feature cache, whether it is whole, and removing it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from promise.cli.common import Parser, run, start_logging
from promise.runtime.errors import UserError

DESCRIPTION = "Look after cached features. They are made again when they are needed, so removing them loses only time."


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser("promise-cache", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="one line for each SAM, preprocessing and precision")
    verify = commands.add_parser("verify", help="compare every file with its checksum; status 1 when one is damaged")
    verify.add_argument("--delete", action="store_true", help="remove what is damaged")
    prune = commands.add_parser("prune", help="remove features")
    which = prune.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="all of them")
    which.add_argument("--older-than", type=float, metavar="DAYS", help="those nothing was added to for so many days")
    which.add_argument("--space", metavar="NAME", nargs="+", help="these, named as info names them")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    for command in (info, verify, prune):
        command.add_argument("--cache-dir", help="folder of cached features; default as in promise-train")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    return run("promise-cache", lambda: _work(arguments))


def _work(arguments: argparse.Namespace) -> int:
    start_logging(quiet=arguments.quiet)
    from promise.features.store import cache_folder

    home = Path(arguments.cache_dir).expanduser() if arguments.cache_dir else cache_folder()
    if arguments.cache_dir and not home.is_dir():
        raise UserError(f"there is no folder {home}. Is --cache-dir right?")
    work = {"info": _info, "verify": _verify, "prune": _prune}[arguments.command]
    return work(home, arguments)


def _info(home: Path, arguments: argparse.Namespace) -> int:
    from promise.features.store import free_bytes, list_spaces

    spaces = list_spaces(home)
    for space in spaces:
        told = space.description
        days = (time.time() - space.used) / 86400
        recipe = "" if told.get("recipe") is None else f", views of {told['recipe']}"
        print(
            f"{space.folder.name}  {space.entries:>7,} images  {space.size / 2**30:>8.2f} GiB  {days:>5.1f} days old  "
            f"{told.get('sam')} ({str(told.get('image_encoder_sha256'))[:12]}), computed in {told.get('computed_in')}, "
            f"stored in {told.get('stored_in')}{recipe}"
        )
    total = sum(space.size for space in spaces)
    print(f"{home}: {total / 2**30:.2f} GiB, {free_bytes(home) / 2**30:.1f} GiB free")
    return 0


def _verify(home: Path, arguments: argparse.Namespace) -> int:
    from promise.features.store import files, find_corruption, list_spaces
    from promise.runtime.progress import progress_bar

    paths = [path for space in list_spaces(home) for path in files(space.folder)]
    damaged = 0
    for path in progress_bar(paths, total=len(paths), name="checking features", unit="file", quiet=arguments.quiet):
        fault = find_corruption(path)
        if fault is not None:
            damaged += 1
            print(fault)
            if arguments.delete:
                path.unlink(missing_ok=True)
    kept = damaged and not arguments.delete
    print(f"{len(paths)} files, {damaged} damaged" + (": --delete removes them" if kept else ""))
    return 1 if kept else 0


def _prune(home: Path, arguments: argparse.Namespace) -> int:
    from promise.features.store import list_spaces, remove_space

    spaces = list_spaces(home)
    if arguments.space:
        unknown = sorted(set(arguments.space) - {space.folder.name for space in spaces})
        if unknown:
            raise UserError(f"nothing is named {', '.join(unknown)} in {home}; promise-cache info lists the names.")
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
