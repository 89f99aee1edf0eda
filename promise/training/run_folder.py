"""A run's folder: what lies where, written whole or not at all, read again to resume; knows no nets and no loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.runtime.files import atomic_path, write_json

OURS = (
    "config.yaml",
    "environment.json",
    "log.csv",
    "log.jsonl",
    "curves.png",
    "best.safetensors",
    "last.safetensors",
    "state/resume.pt",
)


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # epochs done
    history: list[dict[str, float | None]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None
    stale: int = 0  # validations since the best one


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.curves = path / "curves.png"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.state = path / "state" / "resume.pt"
        self.events = path / "tensorboard"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that cannot be used; changes nothing.

        Raises:
            ExistingRunError: it holds a run already, and neither flag says what to do with it.
            MissingFileError: there is nothing to resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ExistingRunError(f"{self.path} is a file, not a folder. Choose another with --output.")
        present = self._present()
        if present and not any(path.exists() for path in (self.state, self.last, self.best)):
            if resume:
                raise MissingFileError(
                    f"the run in {self.path} was stopped before its first epoch ended: nothing to resume. Start it "
                    "again without --resume."
                )
            return  # nothing that could be lost
        if resume and not self.state.is_file():
            raise MissingFileError(
                f"nothing to resume in {self.path}: {self.state} is not there. Drop --resume to start, or point "
                "--output at the run's folder."
            )
        if present and not (resume or overwrite):
            raise ExistingRunError(
                f"{self.path} already holds a run ({', '.join(present[:3])}, …). Go on with it by --resume, replace it "
                "by --overwrite, or choose another folder with --output."
            )

    def clear(self) -> None:
        """Make the folder, and remove an earlier run's files from it; others are left alone."""
        for name in self._present():
            (self.path / name).unlink()
        for events in self.events.glob("events.out.tfevents.*"):
            events.unlink()
        self.path.mkdir(parents=True, exist_ok=True)

    def _present(self) -> list[str]:
        return [name for name in OURS if (self.path / name).exists()]

    def save_state(self, progress: Progress, tensors: Mapping[str, Any]) -> None:
        """Write what resuming needs, in one file: there is no moment at which it is half new."""
        with atomic_path(self.state) as temporary:
            torch.save({"progress": vars(progress), **tensors}, temporary)

    def load_state(self) -> tuple[Progress, dict[str, Any]]:
        """Read what :meth:`save_state` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            state = torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{self.state} cannot be read ({type(error).__name__}). Start again with --overwrite; "
                f"{self.last.name} holds the weights of the last epoch."
            ) from error
        return Progress(**state.pop("progress")), state

    def write_environment(self, **values: Any) -> None:
        """Add values to environment.json."""
        known = json.loads(self.environment.read_text(encoding="utf-8")) if self.environment.is_file() else {}
        write_json(self.environment, {**known, **values})
