"""Records of finished images that other programs have changed, and names of files that are not UTF-8."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promise.data.images import write_png
from promise.data.inputs import Input
from promise.inference.output_folder import PredictionFolder
from promise.prompts.sets import ImagePrompts, PromptSet

SETTINGS = {"checkpoint": "abc"}


@pytest.fixture
def finished(tmp_path: Path) -> tuple[PredictionFolder, Input]:
    """An output folder with one finished image."""
    pixels = np.eye(4, dtype=np.uint8) * 255
    write_png(tmp_path / "a.png", pixels)
    folder, one = PredictionFolder(tmp_path / "out"), Input("a", tmp_path / "a.png")
    folder.prepare(SETTINGS, {}, ())
    write_png(folder.image_path("mask", "a"), pixels)
    folder.add(one, ImagePrompts((4, 4), (PromptSet(box=np.array([0.0, 0, 2, 2])),)), ["mask"], iou=0.5, seconds=0.1)
    assert folder.finished([one], ["mask"]) == [True]
    return folder, one


def remove_size(record: dict[str, Any]) -> None:
    del record["size"]


@pytest.mark.parametrize(
    "change",
    [
        remove_size,
        lambda record: record.update(labels=[[], []]),
        lambda record: record.update(size=[4, "4"]),
        lambda record: record.update(source=None),
        lambda record: record["source"].update(bytes=None),
        lambda record: record.update(outputs=3),
        lambda record: record.update(outputs=["mask", "contour"], contour=7),
        lambda record: record.update(iou="0.5"),
        lambda record: record.update(name="../../a"),
        lambda record: record.update(box=[10**400, 0, 1, 1]),
    ],
)
def test_a_damaged_record_is_an_unfinished_image(
    change: Callable[[dict[str, Any]], None], finished: tuple[PredictionFolder, Input]
) -> None:
    folder, one = finished
    path = folder.record_path("a")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    folder.check(SETTINGS, overwrite=False)
    assert folder.finished([one], ["mask"]) == [False]
    folder.prepare(SETTINGS, {}, ["a"])
    assert folder.join("auto") == []
    assert folder.review(0.9) == []
    assert one.path.is_file()  # a name that leads out of the folder removes nothing


def test_damaged_settings_are_those_of_another_program(
    finished: tuple[PredictionFolder, Input], user_error: Callable[..., Any]
) -> None:
    folder, _ = finished
    (folder.path / "predict.json").write_text('{"format": "promise-predict/1", "settings": [1]}')
    with user_error("foreign-output"):
        folder.check(SETTINGS, overwrite=False)


def test_names_that_are_not_utf8_are_listed_for_review(finished: tuple[PredictionFolder, Input]) -> None:
    folder, one = finished
    name = os.fsdecode(b"\xff")
    try:
        path = one.path.rename(one.path.with_name(f"{name}.png"))
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    folder.add(Input(name, path), ImagePrompts((4, 4), ()), ["mask"], iou=0.5, estimated_iou=None)
    folder.join("auto")
    assert (name, None) in folder.review(0.9)
    assert b"\n\xff," in (folder.path / "review.csv").read_bytes()
