"""The command promise-cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from promise.cli.cache import main
from promise.features.store import FeatureSpace, entry_key, files, list_spaces
from promise.types import Encoded


@pytest.fixture
def home(own_features: Path) -> Path:
    """Two spaces of two entries."""
    for sam in ("tiny", "large"):
        space = FeatureSpace(own_features, {"sam": sam, "computed_in": "fp32", "stored_in": "fp32"}, taps=True)
        for i in range(2):
            space.put(entry_key(i), Encoded(torch.rand(1, 4, 4, 4), (torch.rand(1, 2, 4, 4),)), torch.ones(1, 8, 8))
    return own_features


def test_info_lists_spaces_and_free_space(home, capsys) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "2 images" in out
    assert "tiny (None), computed in fp32, stored in fp32" in out
    assert "GiB free" in out.splitlines()[-1]
    assert len(out.splitlines()) == 3


def test_info_of_an_empty_cache(own_features, capsys) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out.startswith(f"{own_features}: 0.00 GiB")


def test_verify_reports_and_deletes_corrupted_files(home, capsys) -> None:
    assert main(["verify", "--quiet"]) == 0
    assert "8 files, 0 corrupted" in capsys.readouterr().out
    path = next(files(list_spaces(home)[0].folder))
    path.write_bytes(path.read_bytes()[:-3])
    assert main(["verify", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert str(path) in out
    assert all(fact in out for fact in ("1 corrupted", "--delete"))
    assert main(["verify", "--quiet", "--delete"]) == 0
    assert not path.exists()
    assert main(["verify", "--quiet"]) == 0


def test_prune_removes_the_selected_spaces(home, capsys) -> None:
    name = list_spaces(home)[0].folder.name
    assert main(["prune", "--space", name, "--dry-run"]) == 0
    assert len(list_spaces(home)) == 2
    assert main(["prune", "--space", name]) == 0
    assert [s.folder.name != name for s in list_spaces(home)] == [True]
    assert main(["prune", "--space", name]) == 1
    printed = capsys.readouterr().err
    assert all(fact in printed for fact in (name, "promise-cache info"))
    assert main(["prune", "--older-than", "1"]) == 0
    assert len(list_spaces(home)) == 1
    for path in files(list_spaces(home)[0].folder):
        os.utime(path, (0, 0))
    assert main(["prune", "--older-than", "1"]) == 0
    assert list_spaces(home) == []
    assert main(["prune", "--all"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_missing_folder_is_an_error(tmp_path, capsys) -> None:
    assert main(["info", "--cache-dir", str(tmp_path / "nowhere")]) == 1
    printed = capsys.readouterr().err
    assert all(fact in printed for fact in ("--cache-dir", str(tmp_path / "nowhere")))
