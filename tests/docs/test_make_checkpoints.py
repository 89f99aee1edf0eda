"""The script that makes bundled checkpoints, and the page of their cards."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from promise.data.table import read_table
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.models import bundled, checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, whose commands run in this process, where the small backbone is known."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/notebook"))
    module = importlib.import_module("make_checkpoints")

    def run(command: str, *arguments: str | Path) -> None:
        name = command.removesuffix(".py") if command.endswith(".py") else f"promise.cli.{command}"
        assert not importlib.import_module(name).main(list(map(str, arguments)))

    monkeypatch.setattr(module, "run", run)
    return module


def test_the_page_shows_the_cards(script: Any) -> None:
    page = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    assert page == script.page_text(page, bundled.read_cards()), "run: python docs/notebook/make_checkpoints.py --page"


def test_every_fact_of_a_card_is_on_the_page(script: Any, bundled_net: Path) -> None:
    card = bundled.read_cards()["tiny"]
    empty = "start\n<!-- cards -->\nold\n<!-- end of cards -->\nend\n"
    text = script.page_text(empty, {"tiny": card})
    assert text.startswith("start\n<!-- cards -->\n\n## `tiny`: blobs\n")
    assert text.endswith("\n<!-- end of cards -->\nend\n")
    assert "| phantoms | 3 | 0.500 [0.250, 0.750] | 1 | 0.500 (1) | 0.500 (1) | 0.500 (1) |" in text
    for fact in (card.net, card.sha256, "CC-0", card.split, card.machine, card.date, *card.limits, card.command):
        assert fact in text
    assert script.page_text(text, {"tiny": card}) == text


@pytest.mark.filterwarnings("ignore:SAM .* has random weights:RuntimeWarning")
def test_a_checkpoint_is_trained_measured_and_stored(
    script: Any, phantoms: Path, tiny_vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(f"net: APM_dense\nsam: {tiny_vit}\nsam_checkpoint: random\nepochs: 1\ndevice: cpu\nquiet: true\n")
    texts = script.RECIPES["polyp"].texts
    recipe = script.Recipe(lambda _sources, _work: (phantoms, [phantoms]), str(config), texts)
    monkeypatch.setattr(script, "RECIPES", {"blobs": recipe})
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "bundled")
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    bundled.FOLDER.mkdir()
    (bundled.FOLDER / bundled.CARDS).write_text('{"blobs": {"purpose": "edited by hand"}}')
    script.PAGE.write_text("<!-- cards -->\n<!-- end of cards -->\n")

    script.main(["blobs", str(tmp_path / "work"), "folder=unused"])

    card = bundled.read_cards()["blobs"]
    assert "## `blobs`: edited by hand" in script.PAGE.read_text()
    path = bundled.checkpoint_path("blobs")
    run = tmp_path / "work/blobs/run"
    learned, stored = (checkpoint.safetensors.torch.load_file(one) for one in (run / "best.safetensors", path))
    assert {value.dtype for value in stored.values()} <= {torch.float16, torch.int64}
    for name, value in learned.items():
        assert torch.equal(stored[name], value.half() if value.dtype == torch.float32 else value)
    assert str(tmp_path) not in json.dumps(dict(checkpoint.read_metadata(path).config))
    assert (card.net, card.sam, card.rows, card.epoch, card.seed) == (
        "APM_dense",
        tiny_vit,
        {"train": 6, "val": 3},
        1,
        0,
    )
    # The scores of the card are those of the checkpoint by its name.
    settings = EvalConfig(ckpt="blobs", split_csv=(str(phantoms),), output=str(tmp_path / "again"), quiet=True)
    again = evaluate(settings).summary["datasets"]["split"]
    assert [one.dice for one in card.results] == [again["means"]["native"]["dice"]]
    assert card.results[0].missed == again["misses"]["images"]


def test_polyps_are_prepared_with_crops_and_pairs(script: Any, own_phantoms: Path, tmp_path: Path) -> None:
    folder = own_phantoms.parent
    names = sorted(path.stem for path in (folder / "images").iterdir())
    published = {name: {"train": names[:9], "test": names[9:]} for name in ("kvasir", "clinicdb")}
    (tmp_path / "split.json").write_text(json.dumps(published))
    second = shutil.copytree(folder, tmp_path / "second")
    sources = [f"kvasir-seg={folder}", f"cvc-clinicdb={second}", "--split-file", str(tmp_path / "split.json")]
    rows, tests = script.prepare_polyp(sources, tmp_path / "work")
    assert [read_table(test).counts for test in tests] == [{"test": 3}, {"test": 3}]
    table = read_table(rows)
    assert set(table.counts) == {"train", "val"}
    assert {"crop", "pair"} <= {row.image.stem[:4] for row in table.split("train")}


def test_skin_is_prepared_without_held_out_images_and_samples(
    script: Any, own_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = own_phantoms.parent
    test_names = [row.image.stem for row in read_table(own_phantoms).split("test")]
    held_out = [row.image.stem for row in read_table(own_phantoms).split("val")]
    (samples / script.HELD_OUT).write_text("\n".join(held_out))
    monkeypatch.setattr(script, "SAMPLES", samples)
    (tmp_path / "work").mkdir()
    rows, tests = script.prepare_skin([f"folder={samples}"], tmp_path / "work")
    table = read_table(rows)
    assert tests == [rows]
    assert sorted(row.image.stem for row in table.split("test")) == sorted(held_out)
    trained = [row.image.stem for split in ("train", "val") for row in table.split(split)]
    assert len(trained) == 12 - len(test_names) - len(held_out)
    assert not {*test_names, *held_out} & set(trained)


def test_it_needs_a_name_a_folder_and_sources(script: Any, capsys) -> None:
    with pytest.raises(SystemExit):
        script.main(["polyp", "work"])
    assert "sources" in capsys.readouterr().err
