"""The files of a run: names, checks before they are written, state to resume from, environment; knows no nets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.runtime.files import atomic_path, write_json, writing
from promise.runtime.reading import parse_json
from promise.training.resume_state import Progress

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


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.log = path / "log.csv"
        self.curves = path / "curves.png"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.state = path / "state" / "resume.pt"
        self.events = path / "tensorboard"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that the folder can be used; changes nothing.

        Raises:
            ExistingRunError: it already holds a run, and neither ``resume`` nor ``overwrite`` is set; code
                ``existing-run``. Or it is a file; code ``not-a-folder``.
            MissingFileError: there is nothing to resume; code ``nothing-to-resume``.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ExistingRunError(
                f"{self.path} is a file, not a folder. Choose another with --output.", code="not-a-folder"
            )
        present = self._present()
        if self.state.is_file():
            if resume and not self.config.is_file():
                raise ExistingRunError(
                    f"{self.path} holds a run without {self.config.name}, so it cannot be continued. Restore this "
                    "file, or start again with --overwrite.",
                    code="nothing-to-resume",
                )
            if not (resume or overwrite):
                raise ExistingRunError(
                    f"{self.path} already holds a run ({', '.join(present[:3])}, …). Continue it with --resume, "
                    "replace it with --overwrite, or choose another folder with --output.",
                    code="existing-run",
                )
            return
        # The log is written after the first state: without both, no epoch was saved whole, and nothing can be lost.
        finished = self.log.is_file()
        if present and finished and not overwrite:
            raise ExistingRunError(
                f"{self.path} holds a run without {self.state.relative_to(self.path)}, so it cannot be continued. "
                "Replace it with --overwrite, or choose another folder with --output.",
                code="nothing-to-resume" if resume else "existing-run",
            )
        if resume and present:
            raise MissingFileError(
                f"the run in {self.path} was stopped before its first epoch was saved: nothing to resume. Start it "
                "again without --resume.",
                code="nothing-to-resume",
            )
        if resume:
            raise MissingFileError(
                f"nothing to resume in {self.path}: {self.state} does not exist. Drop --resume to start a run, or set "
                "--output to the folder of the run.",
                code="nothing-to-resume",
            )

    def clear(self) -> None:
        """Create the folder and delete the files of an earlier run in it; other files are kept."""
        with writing(self.path):
            # The state and the log first: what a killed process leaves is no longer a run.
            for name in sorted(self._present(), key=lambda name: name not in ("state/resume.pt", "log.csv")):
                (self.path / name).unlink()
            for events in self.events.glob("events.out.tfevents.*"):
                events.unlink()
            self.path.mkdir(parents=True, exist_ok=True)

    def _present(self) -> list[str]:
        return [name for name in OURS if (self.path / name).exists()]

    def save_state(self, progress: Progress, tensors: Mapping[str, Any]) -> None:
        """Write the state to resume from: progress and ``tensors``, in one file, which is replaced atomically."""
        with atomic_path(self.state) as temporary:
            torch.save({"progress": vars(progress), **tensors}, temporary)

    def load_state(self) -> tuple[Progress, dict[str, Any]]:
        """Read what :meth:`save_state` wrote; tensors are on the CPU.

        Raises:
            UserError: the file is damaged; code ``damaged-state``.
        """
        with self._explain_damage():
            state = torch.load(self.state, map_location="cpu", weights_only=True)
            return Progress(**state.pop("progress")), state

    def load_settings(self) -> dict[str, Any]:
        """The settings in the state, as JSON represents them; ``{}`` if an earlier version wrote it.

        Raises:
            UserError: the state is damaged; code ``damaged-state``.
        """
        with self._explain_damage():
            state = torch.load(self.state, map_location="cpu", weights_only=True, mmap=True)  # reads no tensors
            return dict(json.loads(state.get("settings", "{}")))

    @contextmanager
    def _explain_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UserError(
                f"{self.state} cannot be read ({type(error).__name__}). Start again with --overwrite; "
                f"{self.last.name} holds the weights of the last epoch.",
                code="damaged-state",
            ) from error

    def write_environment(self, **values: Any) -> None:
        """Add values to environment.json; what cannot be read of it is lost."""
        known: Any = {}
        with suppress(OSError, ValueError):
            known = parse_json(self.environment.read_text(encoding="utf-8"))
        write_json(self.environment, {**(known if isinstance(known, dict) else {}), **values})
