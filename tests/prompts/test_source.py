"""The table of prompt sources, and the checks of prompt settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise.prompts.file import Draw, write_prompts
from promise.prompts.sampling import SOURCES, prompt_batch
from promise.prompts.sets import ImagePrompts, PromptSet
from promise.prompts.source import (
    PromptSettings,
    find_prompting_errors,
    group_prompts,
    parse_source,
    resolve_prompting,
)
from promise.types import Batch, Prompts

DRAWN = [name for name, source in SOURCES.items() if not source.reads_file]


@pytest.fixture
def batch() -> Batch:
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, 0, 4:9, 10:20] = 1
    mask[1, 0, 20:30, 2:6] = 1
    return Batch(torch.zeros(2, 3, 32, 32), mask, ("a", "b"), torch.arange(2))


def draw(source: str, batch: Batch, **options: Any) -> Prompts | None:
    return prompt_batch(source, batch, **{"num_points": 6, "seed": 3, **options})


def numbers(prompts: Prompts | None) -> list[Any]:
    if prompts is None:
        return []
    points, boxes = prompts.points, prompts.boxes
    return [
        None if points is None else (points.xy.tolist(), points.label.tolist()),
        None if boxes is None else boxes.tolist(),
    ]


def test_the_rows_have_the_origins_that_results_name() -> None:
    assert {name: source.origin for name, source in SOURCES.items()} == {
        "auto": "auto", "gt": "oracle", "gt-box": "oracle", "centre": "centre", "none": "none", "file": "file",
    }  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_only_rows_that_read_the_ground_truth_depend_on_the_mask(name: str, batch: Batch) -> None:
    other = replace(batch, mask=batch.mask.roll(7, dims=2))
    assert (numbers(draw(name, batch)) != numbers(draw(name, other))) == SOURCES[name].reads_ground_truth


@pytest.mark.parametrize("name", DRAWN)
def test_only_random_rows_depend_on_the_seed(name: str, batch: Batch) -> None:
    for changed in ({"seed": 4}, {"epoch": 1}):
        assert (numbers(draw(name, batch)) != numbers(draw(name, batch, **changed))) == SOURCES[name].is_random
    assert numbers(draw(name, batch)) == numbers(draw(name, batch))


def test_each_row_draws_its_prompts(batch: Batch) -> None:
    assert draw("auto", batch) is None
    points = draw("gt", batch)
    assert points.points.label.sum(dim=1).tolist() == [3, 3]
    assert points.boxes is None
    assert draw("gt", batch, positive=2, box=True).points.label.sum(dim=1).tolist() == [2, 2]
    boxes = [[10, 4, 19, 8], [2, 20, 5, 29]]
    assert draw("gt", batch, box=True).boxes.tolist() == boxes
    assert draw("gt-box", batch).boxes.tolist() == boxes
    assert draw("gt-box", batch).points is None
    assert draw("centre", batch).points.xy.tolist() == [[[15.5, 15.5]]] * 2
    assert draw("none", batch).points.xy.shape == (2, 0, 2)


def test_unknown_sources_are_refused(batch: Batch, user_error: Callable[..., Any]) -> None:
    for name in ("file", "gtt", ""):
        with user_error("unknown-prompt-source"):
            draw(name, batch)
    for text in ("file", "gtt", "gt:a.json", "none:"):
        with user_error("unknown-prompts") as caught:
            parse_source(text)
        assert "file:prompts.json" in str(caught.value)
    assert parse_source("file:C:/a:b.json") == (SOURCES["file"], "C:/a:b.json")
    assert parse_source("gt-box") == (SOURCES["gt-box"], "")


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({}, []),
        ({"source": "gt", "gt_points": "8+8", "gt_box": True, "seeds": 3}, []),
        ({"source": "file:p.json"}, []),
        ({"seeds": 2}, []),
        ({"source": "gtt"}, ["unknown-prompts"]),
        ({"gt_points": "8"}, ["invalid-gt-points"]),
        ({"gt_points": "0+0"}, ["invalid-gt-points"]),
        ({"gt_points": "100000+0"}, ["invalid-gt-points"]),
        ({"gt_points": "1000+1000"}, ["invalid-gt-points"]),
        ({"gt_points": f"{'9' * 5000}+1"}, ["invalid-gt-points"]),
        ({"source": "gt", "gt_points": "1+0", "num_points": 4}, ["conflicting-settings"]),
        ({"source": "centre", "gt_box": True}, ["gt-settings-without-gt-prompts"]),
        ({"source": "file:p.json", "seeds": 2}, ["seeds-without-random-prompts"]),
        ({"source": "gt-box", "seeds": 2}, ["seeds-without-random-prompts"]),
        ({"seeds": 0}, ["invalid-prompt-seeds"]),
        (
            {"source": "none", "gt_points": "x", "seeds": 2},
            ["invalid-gt-points", "gt-settings-without-gt-prompts", "seeds-without-random-prompts"],
        ),
    ],
)
def test_faults_of_settings_have_codes(settings: dict[str, Any], codes: list[str]) -> None:
    errors = find_prompting_errors(PromptSettings(**settings))
    assert [error.code for error in errors] == codes


def resolve(own_prompts: bool = True, **settings: Any) -> Any:
    return resolve_prompting(PromptSettings(**settings), net="N", own_prompts=own_prompts, num_points=16, seed=5)


def test_defaults_follow_the_net(user_error: Callable[..., Any]) -> None:
    assert (resolve().source, resolve().seeds) == ("auto", (None,))
    prompting = resolve(own_prompts=False, seeds=2)
    assert (prompting.source, prompting.seeds, prompting.num_points) == ("gt", (5, 6), 16)
    assert prompting.describe() == {
        "prompts": "oracle",
        "prompt_source": "gt",
        "prompt_points": {"positive": 8, "negative": 8},
        "prompt_box": False,
    }
    assert resolve(own_prompts=False, gt_points="3+1").describe()["prompt_points"] == {"positive": 3, "negative": 1}
    with user_error("net-without-prompter") as caught:
        resolve(own_prompts=False, source="auto")
    assert "file:prompts.json" in str(caught.value)
    for settings in ({"gt_points": "1+1"}, {"gt_box": True}, {"seeds": 2}):
        with user_error("gt-settings-without-gt-prompts"):
            resolve(**settings)
    with user_error("num-points-mismatch"):
        resolve(num_points=4)


# --- an evaluation that repeats the prompts of a prompter ----------------------------------------


@pytest.fixture
def map_net(tiny_vit: str) -> Iterator[str]:
    """The name of a registered net whose prompter makes a box and a mask prompt."""
    from torch import nn
    from torch.nn import functional as F

    from promise.models.prompters.base import Prompter
    from promise.models.registry import NETS, NetSpec, register
    from promise.types import Encoded, Prompted

    class MapPrompter(Prompter):
        def __init__(self, channels: int, side: int) -> None:
            super().__init__()
            self.side = side
            self.map = nn.Conv2d(channels, 1, 3, padding=1)

        def forward(self, encoded: Encoded) -> Prompted:
            logits = self.map(encoded.embedding).float()
            masks = F.interpolate(logits, scale_factor=4, mode="bilinear")
            corners = torch.sigmoid(logits.flatten(1)[:, :4]) * (self.side / 2 - 1)
            boxes = torch.cat((corners[:, :2], corners[:, 2:] + self.side / 2), dim=1)
            return Prompted(Prompts(boxes=boxes, masks=masks), lesion_logits=logits)

    def build(backbone: Any, num_points: int, labels: Any) -> MapPrompter:
        return MapPrompter(backbone.embedding_channels, backbone.image_size)

    register(NetSpec("APM_IPS_test_map", build, token_shift=True))
    yield "APM_IPS_test_map"
    del NETS["APM_IPS_test_map"]


@pytest.mark.filterwarnings("ignore:SAM .* has random weights")
def test_a_prompts_file_repeats_the_scores_of_box_and_mask_prompts(
    map_net: str, phantoms: Path, tmp_path: Path, user_error: Callable[..., Any]
) -> None:
    from promise.evaluation.config import EvalConfig
    from promise.evaluation.evaluate import evaluate

    def scores(folder: str, **settings: Any) -> list[str]:
        evaluate(
            EvalConfig(
                net=map_net, sam="tiny_vit", sam_checkpoint="random", split_csv=(str(phantoms),), split="train", seed=3,
                device="cpu", precision="fp32", workers=0, cache="off", quiet=True, batch_size=3,
                output=str(tmp_path / folder), **settings,
            )
        )  # fmt: skip
        lines = (tmp_path / folder / "per_image.csv").read_text().splitlines()
        place = lines[0].split(",").index("prompts")
        return [",".join(v for i, v in enumerate(line.split(",")) if i != place) for line in lines]

    expected = scores("auto")
    assert len(expected) == 7
    path = tmp_path / "auto/prompts.json"
    written = json.loads(path.read_text())
    assert written["version"] == 2
    entries = written["draws"][0]["images"]["split"]
    assert all(entry["points"] == [] and len(entry["box"]) == 4 for entry in entries.values())
    assert all(entry["mask"]["shape"] == [16, 16] for entry in entries.values())
    assert scores("file", prompts=f"file:{path}") == expected
    again = json.loads((tmp_path / "file/prompts.json").read_text())["draws"][0]["images"]["split"]
    for name, entry in entries.items():
        assert again[name]["mask"] == entry["mask"]
        np.testing.assert_allclose(again[name]["box"], entry["box"], atol=1e-5)
    # Without the mask prompts the scores differ: they reach the decoder.
    for entry in entries.values():
        del entry["mask"]
    path.write_text(json.dumps(written))
    assert scores("boxes", prompts=f"file:{path}") != expected


def test_images_are_grouped_by_the_shape_of_their_prompts(tmp_path: Path, batch: Batch) -> None:
    points = np.array([[1.0, 2]]), np.array([1])
    mask = np.ones((8, 8), np.float32)
    images = {
        "a": ImagePrompts((32, 32), (PromptSet(*points, mask=mask),)),
        "b": ImagePrompts((32, 32), (PromptSet(*points),), mask_index=2),
    }
    write_prompts(tmp_path / "p.json", "clicks", [Draw(None, {"d": images})])
    prompting = resolve(source=f"file:{tmp_path / 'p.json'}")
    draws = prompting.draws({"d": {"a": (32, 32), "b": (32, 32)}}, side=32)
    (source,) = prompting.sources("d", draws, side=32)
    first, second = source(batch)
    assert (list(first.indices), first.mask_index, first.prompts.masks.shape) == ([0], None, (1, 1, 8, 8))
    assert (list(second.indices), second.mask_index, second.prompts.masks) == ([1], 2, None)
    assert prompting.describe()["prompt_file"]["source"] == prompting.written_source == "clicks"


def test_images_with_different_numbers_of_lesions_share_a_batch() -> None:
    def image(*sets: PromptSet, **more: Any) -> ImagePrompts:
        return ImagePrompts((32, 32), sets, **more)

    box, point = PromptSet(box=np.array([1.0, 2, 3, 4])), PromptSet(np.array([[1.0, 2]]), np.array([1]))
    images = [image(box, box), image(), image(point), image(box), image(box, point, point, box), image(fuse=True)]
    boxes, points, mixed, none = sorted(group_prompts(images, 32), key=lambda group: list(group.indices))
    assert list(boxes.indices) == [0, 1, 3]
    assert boxes.prompts.image.tolist() == [0, 0, 2]
    assert boxes.prompts.boxes.shape == (3, 4)
    assert list(points.indices) == [2]
    assert points.prompts.image is None  # one set per image
    assert list(mixed.indices) == [4]
    assert [one.image for one in (mixed.prompts, mixed.others[1])] == [None, None]
    assert mixed.others[0].image.tolist() == [0, 0]
    assert [len(one) for one in (mixed.prompts, *mixed.others)] == [1, 2, 1]
    assert (list(none.indices), none.fuse, len(none.prompts)) == ([5], True, 0)
