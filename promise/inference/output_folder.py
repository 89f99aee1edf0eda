"""A folder of predictions: what of it is done, with which checkpoint, and the files that join all images.

Knows no nets. An image is done when its record is there: the record is written last, and everything is whole or not
there, so that a kill at any moment loses no more than the images in work.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promise.data.images import content_hash
from promise.data.inputs import Input
from promise.prompts.file import Draw, ImagePrompts, from_plain, plain_prompts, write_prompts
from promise.runtime.errors import SHOWN, ExistingRunError
from promise.runtime.files import remove_leftovers, write_json, write_text

FORMAT = "promise-predict/1"
RUN, PROMPTS, CONTOURS = "predict.json", "prompts.json", "contours.json"
RECORDS = "records"
FOLDERS = {"mask": "masks", "probability": "probabilities", "overlay": "overlays"}
CONTOUR = "contour"  # lies in the records

Record = dict[str, Any]


class PredictionFolder:
    """The files of ``promise-predict`` in one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, kind: str, name: str) -> Path:
        """Where an image's mask, probability map or overlay lies."""
        return self.path / FOLDERS[kind] / f"{name}.png"

    def check(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse a folder whose files were made otherwise; changes nothing.

        Raises:
            ExistingRunError: made with another checkpoint or other settings, or not by this command.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ExistingRunError(f"{self.path} is a file, not a folder. Choose another with --output.")
        if overwrite:
            return
        then = self._settings()
        if then is None:
            foreign = [name for name in self._ours() if (self.path / name).exists()]
            if foreign:
                raise ExistingRunError(
                    f"{self.path} holds {', '.join(foreign)}, but no {RUN} that says how they were made. Choose "
                    "another folder with --output, or replace them by --overwrite."
                )
            return
        names = dict.fromkeys((*settings, *then))
        changed = [
            f"{n} is {_short(settings.get(n))} and was {_short(then.get(n))}"
            for n in names
            if settings.get(n) != then.get(n)
        ]
        if settings.get("checkpoint") != then.get("checkpoint"):
            changed.append("training or --tune-postprocess may have written the checkpoint again")
        if changed:
            raise ExistingRunError(
                f"{self.path} holds predictions made otherwise: {'; '.join(changed)}. Choose another folder with "
                "--output, or replace them all by --overwrite."
            )

    def done(self, inputs: Sequence[Input], kinds: Collection[str]) -> list[bool]:
        """Which images have all the wanted outputs.

        Raises:
            ExistingRunError: outputs whose names belong to other images.
        """
        known = [self._look(one, kinds) for one in inputs]
        pairs = zip(inputs, known, strict=True)
        strangers = [f"  {one.path}: {self.place('mask', one.name)} is of {owner}" for one, owner in pairs if owner]
        if strangers:
            more = [f"  … and {len(strangers) - SHOWN} more"] if len(strangers) > SHOWN else []
            head = f"{len(strangers)} images have the names of others that {self.path} holds already:"
            tail = "Choose another folder with --output, or replace them by --overwrite."
            raise ExistingRunError("\n".join([head, *strangers[:SHOWN], *more, tail]))
        return [owner is None for owner in known]

    def _look(self, one: Input, kinds: Collection[str]) -> str | None:
        """``None``: done; empty: to do; else the path of another image that has its name."""
        record = self._read(self.path / RECORDS / f"{one.name}.json")
        if record is None:
            return ""
        source, now = record["source"], one.path.stat() if one.path.is_file() else None
        path = str(one.path.resolve())
        then = (source["path"], source["bytes"], source["time"])
        same = now is not None and (path, now.st_size, now.st_mtime_ns) == then
        if not same and (now is None or content_hash(one.path) != source["hash"]):
            return "" if path == source["path"] else str(source["path"])
        whole = set(kinds) <= set(record["outputs"]) and all(
            self.place(kind, one.name).is_file() for kind in kinds if kind in FOLDERS
        )
        return None if whole else ""

    def prepare(self, settings: Mapping[str, Any], environment: Mapping[str, Any], names: Collection[str]) -> None:
        """Make the folder ready, in one process alone: remove what a kill left, and what is to be made again.

        Args:
            settings: that the outputs hang on.
            environment: told beside them.
            names: of images whose outputs are replaced; all are, where the settings differ from before.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        same = self._settings() == dict(settings)
        for path, record in self._records():  # first the record, so that half a removal is no result
            if not same or record["name"] in names:
                path.unlink()
                for kind in FOLDERS:
                    self.place(kind, record["name"]).unlink(missing_ok=True)
        if not same:
            for name in (PROMPTS, CONTOURS):
                (self.path / name).unlink(missing_ok=True)
            write_json(
                self.path / RUN, {"format": FORMAT, "settings": dict(settings), "environment": dict(environment)}
            )

    def add(self, one: Input, prompts: ImagePrompts, outputs: Iterable[str], **told: Any) -> None:
        """Write an image's record, after all its files."""
        now = one.path.stat()
        record = {
            "name": one.name,
            "file": one.name if one.name.endswith(one.path.suffix) else f"{one.name}{one.path.suffix}",
            **plain_prompts(prompts),
            "outputs": sorted(outputs),
            "source": {
                "path": str(one.path.resolve()),
                "bytes": now.st_size,
                "time": now.st_mtime_ns,
                "hash": content_hash(one.path),
            },
            **told,
        }
        write_text(self.path / RECORDS / f"{one.name}.json", json.dumps(record) + "\n")

    def join(self, source: str) -> int:
        """Write prompts.json, and contours.json where there are contours, of all images that are done.

        Args:
            source: where the prompts come from.

        Returns:
            How many images there are.
        """
        records = [record for _, record in self._records()]
        if not records:
            return 0
        images = {r["name"]: from_plain(r) for r in records}
        beside = {r["name"]: {name: r[name] for name in ("iou", "seconds")} for r in records}
        write_prompts(self.path / PROMPTS, source, [Draw(None, {"images": images})], beside=beside)
        outlined = [r for r in records if CONTOUR in r["outputs"]]
        if outlined:
            write_text(self.path / CONTOURS, json.dumps(_coco(outlined)) + "\n")
        return len(records)

    def _records(self) -> list[tuple[Path, Record]]:
        """Of all images, in the order of their names."""
        found = [(path, self._read(path)) for path in (self.path / RECORDS).rglob("*.json")]
        whole = [(path, record) for path, record in found if record is not None]
        return sorted(whole, key=lambda item: str(item[1]["name"]))

    def _read(self, path: Path) -> Record | None:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and {"name", "source", "outputs"} <= record.keys() else None

    def _settings(self) -> dict[str, Any] | None:
        try:
            run = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return dict(run.get("settings", {})) if isinstance(run, dict) and run.get("format") == FORMAT else None

    def _ours(self) -> list[str]:
        return [PROMPTS, CONTOURS, RECORDS, *FOLDERS.values()]


def _coco(records: Sequence[Record]) -> dict[str, Any]:
    """COCO's table of images and annotations; images without foreground have none."""
    images = [
        {"id": i, "file_name": r["file"], "width": r["size"][0], "height": r["size"][1]}
        for i, r in enumerate(records, start=1)
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "score": r["iou"], **r[CONTOUR]}
        for i, r in enumerate(records, start=1)
        if r[CONTOUR] is not None
    ]
    return {"images": images, "categories": [{"id": 1, "name": "foreground"}], "annotations": annotations}


def _short(value: Any) -> str:
    """A setting as a person can compare it: of a SHA-256 the first digits."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text
