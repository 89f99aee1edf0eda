"""Logs of a run: log.csv, log.jsonl, TensorBoard, one line per epoch, curves; knows no nets and no loop."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from promise.runtime.files import write_text
from promise.training.curves import draw_curves

log = logging.getLogger(__name__)

EpochRow = dict[str, float | None]


def convert_tensors(values: dict[str, Any]) -> None:
    """Replace scalar tensors, which a callback may have added, by numbers; in place."""
    values.update({name: value.item() for name, value in values.items() if isinstance(value, torch.Tensor)})


class RunLog:
    """Logs the epochs of one run."""

    def __init__(self, folder: Path, *, epochs: int, done: int, tensorboard: bool) -> None:
        """Open the logs of a run.

        Args:
            folder: of the run.
            epochs: of the whole run.
            done: epochs that are logged already.
            tensorboard: whether to write TensorBoard events, if the package is installed.
        """
        self.folder = folder
        self.epochs = epochs
        self.events = _open_events(folder / "tensorboard", done) if tensorboard else None

    def append(self, history: Sequence[EpochRow], *, best: bool) -> None:
        """Log the last row of the history; the files are rewritten from all of it."""
        self.write(history)
        row = history[-1]
        with self._extra("TensorBoard events"):
            for name, value in row.items():
                if self.events is not None and value is not None and name != "epoch":
                    self.events.add_scalar(name, value, row["epoch"])
        log.info(_line(row, self.epochs, best=best))

    def write(self, history: Sequence[EpochRow]) -> None:
        """Write log.csv and log.jsonl from the whole history; without any epoch, write nothing."""
        if not history:
            return
        columns = list(dict.fromkeys(name for row in history for name in row))  # a callback may add some later
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.folder / "log.csv", text.getvalue())
        write_text(self.folder / "log.jsonl", "".join(json.dumps(r) + "\n" for r in history))

    def close(self, history: Sequence[EpochRow]) -> None:
        """Draw the curves and close the file of TensorBoard."""
        with self._extra("curves.png"):
            if history:
                draw_curves(self.folder / "curves.png", history)
        with self._extra("TensorBoard events"):
            if self.events is not None:
                self.events.close()

    @contextmanager
    def _extra(self, name: str) -> Iterator[None]:
        """A full disk costs the pictures, not the run, and must not hide the error that ended it."""
        try:
            yield
        except OSError as error:
            log.warning("%s is not written (%s).", name, error.strerror or error)
            if name != "curves.png":
                self.events = None


def _open_events(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the [logging] extra is not installed
        return None
    try:
        return SummaryWriter(str(folder), purge_step=done + 1 if done else None)
    except OSError as error:
        log.warning("TensorBoard events are not written (%s).", error.strerror or error)
        return None


def _line(row: Mapping[str, float | None], epochs: int, *, best: bool) -> str:
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if row["val_dice"] is not None:
        parts.append(f"val loss {row['val_loss']:.4f}  Dice {row['val_dice']:.4f}  IoU {row['val_iou']:.4f}")
    parts.append(f"lr {row['lr']:.2e}  {row['seconds']:.0f} s")
    return "  ".join(parts) + ("  ← best" if best else "")
