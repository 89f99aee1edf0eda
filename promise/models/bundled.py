"""Bundled checkpoints: trained nets that the package contains, found by name, each with a card.

``promise/checkpoints`` has one safetensors file per name, and ``cards.json``, the cards by name. Both are written by
``docs/notebook/make_checkpoints.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promise.models.sam.weights import file_sha256
from promise.runtime.errors import MissingFileError, UserError, unknown_name

FOLDER = Path(__file__).parents[1] / "checkpoints"
CARDS = "cards.json"
NONE = "no bundled checkpoints in this installation"


@dataclass(frozen=True)
class Source:
    """A data set that a net was trained on."""

    name: str
    terms: str  # licence, or terms of use
    reference: str


@dataclass(frozen=True)
class Result:
    """Scores of automatic masks on a test set, in the protocol ``native``."""

    test_set: str
    images: int
    dice: float  # mean over images
    interval: tuple[float, float]  # 95 % bootstrap interval
    missed: int  # images with Dice < 0.1
    by_size: Mapping[str, Mapping[str, Any]]  # small, medium, large → images, dice, as in summary.json


@dataclass(frozen=True)
class Card:
    """What a bundled checkpoint is, what it was trained on, and what it reaches."""

    purpose: str
    net: str
    sam: str
    sources: tuple[Source, ...]
    split: str  # how the images were divided
    rows: Mapping[str, int]  # train and val → number of images
    seed: int
    epoch: int  # selected on the val rows
    minutes: float  # of training without the encoding of images
    machine: str
    date: str
    command: str  # makes the checkpoint
    evaluation: str  # command that measures the results
    results: tuple[Result, ...]
    limits: tuple[str, ...]  # failures, and what it must not be used for
    sha256: str  # of the file
    size: int  # of the file, in bytes


def read_cards() -> dict[str, Card]:
    """The cards of all bundled checkpoints, by name."""
    path = FOLDER / CARDS
    return {name: _card(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}


def _card(value: Mapping[str, Any]) -> Card:
    parts = {
        "sources": tuple(Source(**one) for one in value["sources"]),
        "results": tuple(Result(**{**one, "interval": tuple(one["interval"])}) for one in value["results"]),
        "limits": tuple(value["limits"]),
    }
    return Card(**{**value, **parts})


def checkpoint_path(name: str) -> Path:
    """The file of a bundled checkpoint; its SHA-256 is checked.

    Raises:
        MissingFileError: the name is unknown (``unknown-checkpoint``), or the installation lacks the file
            (``missing-bundled-checkpoint``).
        UserError: the file is not that of the card (``changed-checkpoint``).
    """
    cards = read_cards()
    if name not in cards:
        known = str(unknown_name("checkpoint", name, cards)) if cards else f"unknown checkpoint {name!r}: {NONE}."
        raise MissingFileError(f"{known} The path of a file is accepted too.", code="unknown-checkpoint")
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise MissingFileError(
            f"the file of the bundled checkpoint {name!r} is missing: {path}. Reinstall promise-sam.",
            code="missing-bundled-checkpoint",
        )
    found, expected = file_sha256(path), cards[name].sha256
    if found != expected:
        raise UserError(
            f"{path} is not the bundled checkpoint {name!r} of this version: its SHA-256 is {found[:12]}…, not "
            f"{expected[:12]}…. Reinstall promise-sam; to use the file as it is, pass a path of a copy.",
            code="changed-checkpoint",
        )
    return path


def list_checkpoints() -> str:
    """The bundled checkpoints as text, one paragraph for each."""
    return "\n\n".join(_text(name, card) for name, card in read_cards().items()) or NONE


def _text(name: str, card: Card) -> str:
    lines = {
        "net": f"{card.net} on {card.sam}, {card.size / 1e6:.1f} MB",
        "data": "; ".join(f"{one.name} ({one.terms})" for one in card.sources),
        "trained": f"{card.rows['train']} train and {card.rows['val']} val images, seed {card.seed}, {card.date}",
        **{
            f"Dice, {one.test_set}": f"{dice_text(one)}, {one.images} images, {one.missed} missed"
            for one in card.results
        },
        "command": card.command,
        "SHA-256": card.sha256,
    }
    return "\n".join([f"{name}: {card.purpose}", *(f"  {key:<18} {text}" for key, text in lines.items())])


def dice_text(result: Result) -> str:
    """The mean Dice with its interval."""
    low, high = result.interval
    return f"{result.dice:.3f} [{low:.3f}, {high:.3f}]"
