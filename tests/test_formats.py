"""Files of an earlier version are still read: `formats/README.md` lists them."""

from __future__ import annotations

import importlib
import json
import shutil
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FORMATS = Path(__file__).parent / "formats"
ROOT = Path(__file__).parents[1]


def write_sam(path: Path, formula: Callable[..., Any]) -> None:
    """Weights of tiny_vit, the same on every machine."""
    import torch

    from promise.models.sam.backbones import BACKBONES

    state = BACKBONES["tiny_vit"].build().state_dict()
    torch.save({name: formula(name, tuple(value.shape)) for name, value in state.items()}, path)


@pytest.fixture
def written(tiny_vit: str, formula: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files, as the current folder."""
    folder = tmp_path / "formats"
    shutil.copytree(FORMATS, folder)
    write_sam(folder / "sam.pth", formula)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_is_resumed_to_the_end_that_it_had(written: Path) -> None:
    from safetensors.numpy import load_file

    from promise.cli.train import main

    assert main(["--output", "run", "--resume", "--quiet", "--no-tensorboard"]) == 0
    log, expected = pd.read_csv("run/log.csv"), pd.read_csv("whole_log.csv")
    assert list(log.columns) == list(expected.columns)
    pd.testing.assert_frame_equal(log.drop(columns="seconds"), expected.drop(columns="seconds"), rtol=1e-4)
    ended, whole = load_file("run/last.safetensors"), load_file("whole_last.safetensors")
    assert ended.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(ended[name], whole[name], atol=1e-5, err_msg=name)


def test_a_checkpoint_gives_the_scores_and_prompts_that_it_gave(written: Path) -> None:
    from promise.cli.eval import main

    command = [
        "--ckpt",
        "run/best.safetensors",
        "--sam-checkpoint",
        "sam.pth",
        "--split-csv",
        "data/split.csv",
        "--quiet",
    ]
    common = [*command, "--device", "cpu", "--precision", "fp32", "--workers", "0", "--cache", "off", "--gallery", "0"]
    drawn = ["--prompts", "gt", "--gt-points", "2+1", "--gt-box", "--prompt-seeds", "2"]
    for prompts, output in ((drawn, "again"), (["--prompts", "file:eval/prompts.json"], "from_file")):
        assert main([*common, *prompts, "--output", output]) == 0
        _compare_evaluations(written / output, written / "eval", drawn=prompts is drawn)


def _compare_evaluations(found: Path, expected: Path, *, drawn: bool) -> None:
    now, then = (json.loads((folder / "summary.json").read_text()) for folder in (found, expected))
    assert (then.keys() if drawn else then.keys() - {"prompt_points", "prompt_box"}) <= now.keys()
    means, old_means = (one["datasets"]["split"]["means"]["native"] for one in (now, then))
    assert {name: means[name] for name in old_means} == pytest.approx(old_means, abs=1e-4)
    rows, old_rows = (pd.read_csv(folder / "per_image.csv") for folder in (found, expected))
    assert set(old_rows.columns) <= set(rows.columns)
    scores = [name for name in old_rows if name.startswith(("native_", "reference_", "soft_"))]
    pd.testing.assert_frame_equal(rows[scores], old_rows[scores], rtol=1e-3, atol=1e-4)
    if drawn:
        prompts, old = (json.loads((folder / "prompts.json").read_text())["draws"] for folder in (found, expected))
        for draw, old_draw in zip(prompts, old, strict=True):
            assert draw["seed"] == old_draw["seed"]
            for name, image in old_draw["images"]["split"].items():
                assert {k: draw["images"]["split"][name][k] for k in image} == image


def test_an_old_evaluation_is_compared_and_reported(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from promise.cli.compare import main as compare
    from promise.cli.report import main as report
    from promise.evaluation.reader import read_evaluation
    from promise.evaluation.summary import results_text

    old = read_evaluation(Path("eval"))
    assert "native_nsd" not in old.metrics
    header, _, *rows = results_text([old.summary]).splitlines()[2:6]
    end = header.index("NSD") + len("NSD")
    assert [row[:end].split()[-1] for row in rows] == ["-", "-"]
    assert compare(["eval", "eval"]) == 0
    assert report(["run", "--eval", "eval", "--output", "report.html"]) == 0
    assert "IPS_GT" in Path("report.html").read_text(encoding="utf-8")


def test_learned_entries_keep_their_names_and_shapes(build: Callable[..., Any]) -> None:
    for name, expected in json.loads((FORMATS / "learned_names.json").read_text()).items():
        found = {entry: list(value.shape) for entry, value in build(name).learned_state().items()}
        assert found == expected, name


def test_every_flag_is_still_understood() -> None:
    from promise.cli.argparse_adapter import list_flags

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for command, flags in json.loads((FORMATS / "flags.json").read_text()).items():
        parser = importlib.import_module(scripts[command].split(":")[0]).make_parser()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            missing = set(flags) - set(list_flags(parser))
        assert not missing, command
