"""The output folder of ``promise-predict``: finished images, their settings, and the files that cover all images.

An image is finished when its record exists. The record is written last and all files are written atomically, so an
interruption loses only the images that were being processed.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promise.data.images import content_hash
from promise.data.inputs import Input
from promise.prompts.entry import prompts_from_dict, prompts_to_dict
from promise.prompts.file import Draw, write_prompts
from promise.prompts.sets import ImagePrompts
from promise.runtime.errors import SHOWN, ExistingRunError
from promise.runtime.files import remove_leftovers, short_name, write_json, write_text
from promise.runtime.reading import parse_json

FORMAT = "promise-predict/1"
RUN, PROMPTS, CONTOURS, REVIEW = "predict.json", "prompts.json", "contours.json", "review.csv"
RECORDS = "records"
DATASET = "images"  # name of the only data set in the prompts file
FOLDERS = {"mask": "masks", "probability": "probabilities", "overlay": "overlays"}
CONTOUR = "contour"  # stored in the records

_LONGEST_NAME = 250  # bytes, without the suffix .json; file systems allow 255

Record = dict[str, Any]


class PredictionFolder:
    """The files of ``promise-predict`` in one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def image_path(self, kind: str, name: str) -> Path:
        """Path of the mask, probability map or overlay of an image."""
        return self.path / FOLDERS[kind] / f"{name}.png"

    def record_path(self, name: str) -> Path:
        """Path of the record of an image; its longer suffix must not make the name too long."""
        *folders, last = name.split("/")
        return self.path.joinpath(RECORDS, *folders, f"{short_name(last, _LONGEST_NAME)}.json")

    def check(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Check that the results in the folder were produced with the same settings. Changes nothing.

        Args:
            settings: the settings that determine the results.
            overwrite: whether existing results are replaced.

        Raises:
            ExistingRunError: the results were produced with another checkpoint or other settings
                (``predictions-of-other-settings``) or by another program (``foreign-output``), or the path is a file
                (``output-is-a-file``).
        """
        if self.path.exists() and not self.path.is_dir():
            raise ExistingRunError(
                f"{self.path} is a file, not a folder. Choose a folder with --output.", code="output-is-a-file"
            )
        if overwrite:
            return
        previous = self._settings()
        if previous is None:
            foreign = [name for name in (PROMPTS, CONTOURS, RECORDS, *FOLDERS.values()) if (self.path / name).exists()]
            if foreign:
                raise ExistingRunError(
                    f"{self.path} contains {', '.join(foreign)}, but no {RUN} with the settings that produced them. "
                    "Choose another folder with --output, or replace them with --overwrite.",
                    code="foreign-output",
                )
            return
        names = dict.fromkeys((*settings, *previous))
        changed = [
            f"{n} is {_short(settings.get(n))} and was {_short(previous.get(n))}"
            for n in names
            if settings.get(n) != previous.get(n)
        ]
        if settings.get("checkpoint") != previous.get("checkpoint"):
            changed.append("training or --tune-postprocess may have rewritten the checkpoint")
        if changed:
            raise ExistingRunError(
                f"{self.path} contains predictions with other settings: {'; '.join(changed)}. Choose another folder "
                "with --output, or replace all of them with --overwrite.",
                code="predictions-of-other-settings",
            )

    def finished(self, inputs: Sequence[Input], kinds: Collection[str]) -> list[bool]:
        """Whether each image has all outputs of these kinds.

        Raises:
            ExistingRunError: results of other images with the same names (``name-of-another-image``).
        """
        states = [self._state(one, kinds) for one in inputs]
        conflicts = [
            f"  {one.path}: {self.image_path('mask', one.name)} belongs to {owner}"
            for one, (_, owner) in zip(inputs, states, strict=True)
            if owner is not None
        ]
        if conflicts:
            more = [f"  … and {len(conflicts) - SHOWN} more"] if len(conflicts) > SHOWN else []
            head = f"{len(conflicts)} images have the names of other images in {self.path}:"
            tail = "Choose another folder with --output, or replace the results with --overwrite."
            raise ExistingRunError("\n".join([head, *conflicts[:SHOWN], *more, tail]), code="name-of-another-image")
        return [finished for finished, _ in states]

    def _state(self, one: Input, kinds: Collection[str]) -> tuple[bool, str | None]:
        """Whether an image is finished; and the path of another image whose results have its name, if any."""
        record = self._read(self.record_path(one.name))
        if record is None:
            return False, None
        if not _is_source(one.path, record["source"]):
            owner = str(record["source"]["path"])
            return False, None if owner == str(one.path.resolve()) else owner
        exist = all(self.image_path(kind, one.name).is_file() for kind in kinds if kind in FOLDERS)
        return set(kinds) <= set(record["outputs"]) and exist, None

    def prepare(self, settings: Mapping[str, Any], environment: Mapping[str, Any], names: Collection[str]) -> None:
        """Create the folder, and remove results that are recomputed and leftovers of interruptions.

        Only one process may call this.

        Args:
            settings: the settings that determine the results.
            environment: recorded with them.
            names: images whose results are replaced; all are, if the settings have changed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        same = self._settings() == dict(settings)
        for path, record in self._records():  # the record first: files without a record are not a result
            if not same or record["name"] in names:
                path.unlink()
                for kind in FOLDERS:
                    self.image_path(kind, record["name"]).unlink(missing_ok=True)
        if not same:
            for name in (PROMPTS, CONTOURS, REVIEW):
                (self.path / name).unlink(missing_ok=True)
            write_json(
                self.path / RUN, {"format": FORMAT, "settings": dict(settings), "environment": dict(environment)}
            )

    def add(self, one: Input, prompts: ImagePrompts, outputs: Iterable[str], **values: Any) -> None:
        """Write the record of an image, after all its files.

        Args:
            one: the image.
            prompts: the prompts that were used.
            outputs: kinds of the files that were written.
            **values: further keys of the record.
        """
        status = one.path.stat()
        record = {
            "name": one.name,
            "file": one.name if one.name.endswith(one.path.suffix) else f"{one.name}{one.path.suffix}",
            **prompts_to_dict(prompts),
            "outputs": sorted(outputs),
            "source": {
                "path": str(one.path.resolve()),
                "bytes": status.st_size,
                "time": status.st_mtime_ns,
                "hash": content_hash(one.path),
            },
            **values,
        }
        write_text(self.record_path(one.name), json.dumps(record) + "\n")

    def join(self, source: str) -> list[str]:
        """Write prompts.json, and contours.json if there are contours, for all finished images.

        Args:
            source: where the prompts come from.

        Returns:
            Names of the finished images in which no lesion was found.
        """
        records = [record for _, record in self._records()]
        if not records:
            return []
        images = {r["name"]: prompts_from_dict(r) for r in records}
        extra: dict[str, dict[str, Any]] = {
            r["name"]: {name: r[name] for name in ("iou", "estimated_iou", "seconds") if name in r} for r in records
        }
        write_prompts(self.path / PROMPTS, source, [Draw(None, {DATASET: images})], extra=extra)
        outlined = [r for r in records if CONTOUR in r["outputs"]]
        if outlined:
            write_text(self.path / CONTOURS, json.dumps(_coco(outlined)) + "\n")
        return [name for name, prompts in images.items() if not prompts.sets]

    def review(self, below: float) -> list[tuple[str, float | None]]:
        """Write review.csv: the finished images that a person should inspect.

        Args:
            below: images with a lower estimated IoU are included, and those without a lesion.

        Returns:
            Names and estimated IoU, lowest first; images without a lesion, whose IoU is ``None``, before all others.
        """
        records = [record for _, record in self._records()]
        chosen = [r for r in records if r.get("estimated_iou") is None or r["estimated_iou"] < below]
        chosen.sort(key=lambda r: -1.0 if r.get("estimated_iou") is None else r["estimated_iou"])
        table = io.StringIO()
        lines = [(r["name"], r.get("estimated_iou"), r["source"]["path"]) for r in chosen]
        csv.writer(table, lineterminator="\n").writerows([("name", "estimated_iou", "path"), *lines])
        write_text(self.path / REVIEW, table.getvalue())
        return [(name, estimate) for name, estimate, _ in lines]

    def doubtful(self, below: float) -> list[tuple[str, float]]:
        """Names and estimated IoU of the finished images with a lower estimate, lowest first; writes nothing."""
        estimates = [(r["name"], r["estimated_iou"]) for _, r in self._records() if r.get("estimated_iou") is not None]
        return sorted((one for one in estimates if one[1] < below), key=lambda one: one[1])

    def _records(self) -> list[tuple[Path, Record]]:
        """The valid records with their paths, sorted by image name."""
        found = [(path, self._read(path)) for path in (self.path / RECORDS).rglob("*.json")]
        valid = [(path, record) for path, record in found if record is not None]
        return sorted(valid, key=lambda item: str(item[1]["name"]))

    def _read(self, path: Path) -> Record | None:
        try:
            record = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if _is_record(record) and self.record_path(record["name"]) == path else None

    def _settings(self) -> dict[str, Any] | None:
        try:
            run = parse_json((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        settings = run.get("settings") if isinstance(run, dict) and run.get("format") == FORMAT else None
        return settings if isinstance(settings, dict) else None


def _is_record(record: Any) -> bool:
    """Whether a record has all that is read from it, with the right types: other programs may have changed the file."""
    try:
        prompts_to_dict(prompts_from_dict(record))
        source, scores = record["source"], (record.get("iou"), record.get("estimated_iou"))
        texts = (record["name"], record["file"], source["path"], source["hash"], *record["outputs"])
        numbers = (*record["size"], source["bytes"], source["time"])
        for text in texts:
            os.fsencode(text)
        contour = record[CONTOUR] if CONTOUR in record["outputs"] else None
        if contour is not None:
            _coco([record])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int for number in numbers)
        and all(isinstance(score, int | float | None) for score in scores)
    )


def _is_source(path: Path, source: Mapping[str, Any]) -> bool:
    """Whether a file is the recorded image: the same file, unchanged, or a file with the same content."""
    if not path.is_file():
        return False
    status = path.stat()
    recorded = (source["path"], source["bytes"], source["time"])
    unchanged = (str(path.resolve()), status.st_size, status.st_mtime_ns) == recorded
    return bool(unchanged or content_hash(path) == source["hash"])


def _coco(records: Sequence[Record]) -> dict[str, Any]:
    """COCO's images and annotations. An image without foreground has no annotation."""
    images = [
        {"id": i, "file_name": r["file"], "width": r["size"][0], "height": r["size"][1]}
        for i, r in enumerate(records, start=1)
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "score": _score(r), **r[CONTOUR]}
        for i, r in enumerate(records, start=1)
        if r[CONTOUR] is not None
    ]
    return {"images": images, "categories": [{"id": 1, "name": "foreground"}], "annotations": annotations}


def _score(record: Record) -> float:
    """The estimated IoU, learned if there is one, else SAM's own."""
    learned = record.get("estimated_iou")
    return float(record["iou"] if learned is None else learned)


def _short(value: Any) -> str:
    """A setting for a message; a SHA-256 is abbreviated."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text
