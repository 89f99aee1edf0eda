"""The private parts of argparse."""

from __future__ import annotations

import argparse
import sys

from promise.cli.argparse_adapter import list_actions, list_flags


def test_argparse_lists_its_actions() -> None:
    parser = argparse.ArgumentParser()
    version = sys.version.split()[0]
    assert hasattr(parser, "_actions"), (
        f"Python {version} has no argparse.ArgumentParser._actions: adapt promise.cli.argparse_adapter"
    )


def test_flags_and_positional_arguments_are_listed() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument_group("group").add_argument("--size", "-s")
    parser.add_mutually_exclusive_group().add_argument("--all", action=argparse.BooleanOptionalAction)
    assert [action.dest for action in list_actions(parser)] == ["help", "file", "size", "all"]
    assert list_flags(parser) == ["-h", "--help", "--size", "-s", "--all", "--no-all"]
