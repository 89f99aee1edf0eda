"""The private parts of ``argparse`` that the commands use. There is no public way to list the arguments of a parser."""

from __future__ import annotations

import argparse


def list_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return all arguments of a parser, positional and optional, in the order in which they were added."""
    return parser._actions


def list_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return all spellings of the optional arguments of a parser, such as ``-h`` and ``--help``."""
    return [flag for action in list_actions(parser) for flag in action.option_strings]
