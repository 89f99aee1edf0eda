"""Bundled checkpoints: found by name where a path is accepted, checked by their SHA-256, described by their cards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import promise
from promise.cli import app as app_command
from promise.cli import export as export_command
from promise.cli import predict as predict_command
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.evaluation.tune import tune
from promise.models import bundled, checkpoint
from promise.models.sam.weights import file_sha256

Errors = Callable[..., Any]
NO_EXPORT = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="export needs torch 2.9"
)


@pytest.mark.filterwarnings("ignore:SAM .* has random weights:RuntimeWarning")
def test_a_name_loads_the_net_of_the_file(bundled_net: Path) -> None:
    named, metadata = checkpoint.load("tiny")
    by_path, expected = checkpoint.load(bundled_net)
    assert metadata == expected == checkpoint.read_metadata("tiny")
    assert all(torch.equal(value, by_path.learned_state()[key]) for key, value in named.learned_state().items())
    assert promise.load("tiny", device="cpu").metadata == metadata


def test_a_file_of_the_same_name_takes_precedence(
    bundled_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Errors
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert checkpoint.find("tiny") == bundled_net  # a folder is not a checkpoint
    Path("tiny").rmdir()
    Path("tiny").write_bytes(b"")
    assert checkpoint.find("tiny") == Path("tiny")
    Path("runs").mkdir()
    with user_error("is-a-folder"):
        checkpoint.load("runs")


def test_paths_are_not_names(bundled_net: Path, user_error: Errors) -> None:
    for path in ("folder/tiny", "tiny.safetensors", "./tiny/"):
        with user_error("missing-checkpoint"):
            checkpoint.require(path)


def test_an_unknown_name_lists_the_known_ones(bundled_net: Path, user_error: Errors) -> None:
    with user_error("unknown-checkpoint") as caught:
        promise.load("tinny")
    assert isinstance(caught.value, FileNotFoundError)
    assert "Did you mean 'tiny'? Known: tiny. The path of a file is accepted too." in str(caught.value)


def test_without_bundled_checkpoints(bundled_net: Path, user_error: Errors, capsys) -> None:
    (bundled_net.parent / bundled.CARDS).write_text("{}")
    with user_error("unknown-checkpoint") as caught:
        promise.load("polyp")
    assert bundled.NONE in str(caught.value)
    assert predict_command.main(["--list-checkpoints"]) == 0
    assert capsys.readouterr().out == f"{bundled.NONE}\n"


def test_a_changed_or_missing_file_is_reported(bundled_net: Path, user_error: Errors) -> None:
    bundled_net.write_bytes(bundled_net.read_bytes() + b"\0")
    with user_error("changed-checkpoint"):
        checkpoint.load("tiny")
    bundled_net.unlink()
    with user_error("missing-bundled-checkpoint"):
        checkpoint.load("tiny")


def test_the_list_shows_the_card(bundled_net: Path, capsys) -> None:
    assert predict_command.main(["--list-checkpoints"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny: blobs\n")
    for fact in (
        "APM_IPS_dense on tiny_vit",
        "phantoms (CC-0)",
        "6 train and 3 val images, seed 5, 2026-01-31",
        "0.500 [0.250, 0.750], 3 images, 1 missed",
        "make tiny",
        file_sha256(bundled_net),
    ):
        assert fact in text


@pytest.mark.parametrize(
    "command",
    [
        lambda out: predict_command.main(["--ckpt", "tinny", "--output", out, "image.png"]),
        pytest.param(lambda out: export_command.main(["--ckpt", "tinny", "--output", out]), marks=NO_EXPORT),
        lambda out: app_command.main(["--ckpt", "tinny", "--port", "0"]),
    ],
    ids=["predict", "export", "app"],
)
def test_commands_report_unknown_names_in_one_error(command, bundled_net: Path, tmp_path: Path, capsys) -> None:
    Path(tmp_path / "image.png").write_bytes(b"")
    pytest.importorskip("onnx", reason="needs the [export] extra")
    pytest.importorskip("uvicorn", reason="needs the [app] extra")
    assert command(str(tmp_path / "out")) == 1
    assert "unknown checkpoint 'tinny'. Did you mean 'tiny'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:SAM .* has random weights:RuntimeWarning")
def test_predict_and_eval_accept_a_name(
    bundled_net: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_error: Errors
) -> None:
    monkeypatch.chdir(tmp_path)
    images = str(phantoms.parent / "images")
    assert predict_command.main(["--ckpt", "tiny", "--output", "masks", "--quiet", images]) == 0
    assert len(list(Path("masks/masks").iterdir())) == 12
    result = evaluate(EvalConfig(ckpt="tiny", split_csv=(str(phantoms),), device="cpu", quiet=True))
    assert result.folder == Path("runs/tiny/eval")  # not in the folder of the installed package
    assert result.summary["checkpoint"] == "tiny"
    assert {path.name for path in bundled_net.parent.iterdir()} == {"tiny.safetensors", bundled.CARDS}
    with user_error("tuning-without-checkpoint"):  # it would change the bundled file
        tune(EvalConfig(ckpt="tiny", split_csv=(str(phantoms),), tune_postprocess=True, quiet=True))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from strings(one)


def test_the_files_in_the_package_are_those_of_the_cards() -> None:
    cards = bundled.read_cards()
    files = sorted(bundled.FOLDER.glob("*.safetensors"))
    assert [path.stem for path in files] == sorted(cards)
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    for name, card in cards.items():
        path = bundled.checkpoint_path(name)  # compares the SHA-256
        metadata = checkpoint.read_metadata(path)
        assert path.stat().st_size == card.size <= 8_000_000
        assert (metadata.net, metadata.sam, metadata.seed, metadata.epoch) == (
            card.net,
            card.sam,
            card.seed,
            card.epoch,
        )
        assert metadata.sam_checkpoint == "auto"
        assert [text for text in strings(dataclasses.asdict(metadata)) if "/" in text] == []  # paths of a machine
        assert card.sources
        assert card.results
        assert all(one.terms for one in card.sources)
