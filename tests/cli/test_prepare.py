"""The command promise-prepare."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from promise.cli.prepare import main
from promise.data.table import read_table


def test_prepare_prints_the_tables(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [f"folder={phantoms.parent}", "--size", "32", "--fractions", "0.5", "0.25", "0.25", "--output", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out / 'split.csv'}: 6 train, 3 val, 3 test\n"
    assert all(fact in printed.err for fact in ("0.5 0.25 0.25", "seed 0"))
    assert read_table(out / "split.csv").counts == {"train": 6, "val": 3, "test": 3}
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"promise-prepare: {out} ")
    assert all(fact in error for fact in ("split.csv, frames.csv", "--overwrite"))
    assert main([*command, "--overwrite", "--no-crop-border", "--quiet"]) == 0


def test_layout_flags(phantoms: Path, tmp_path: Path) -> None:
    for name, other in (("images", "pictures"), ("masks", "outlines")):
        shutil.copytree(phantoms.parent / name, tmp_path / other)
    named = [f"folder={tmp_path}", "--images", "pictures", "--masks", "outlines", "--in-place"]
    assert main([*named, "--mask-prefix", "phan", "--output", str(tmp_path / "out")]) == 1  # no phanphantom_0000
    assert main([*named, "--image-suffix", "x", "--output", str(tmp_path / "out")]) == 0
    first = read_table(tmp_path / "out/split.csv").rows[0]
    assert (first.image.parent.name, first.mask.parent.name) == ("pictures", "outlines")
    assert not (tmp_path / "out/images").exists()


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["{tmp}"], "LAYOUT=FOLDER"),
        (["folder={tmp}/absent"], "absent"),
        (["kvasir={tmp}"], "Did you mean 'kvasir-seg'"),
        (["folder={set}", "--size", "4"], "--size"),
        (["folder={set}", "folder={set}"], "2 sets"),
        (["folder={set}", "--split-file", "{tmp}/absent.json"], "absent.json"),
    ],
)
def test_invalid_input_is_status_1(
    arguments: list[str], fact: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [a.format(tmp=tmp_path, set=phantoms.parent) for a in arguments]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert fact in printed.err
    assert not (tmp_path / "out").exists()


def test_bad_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["folder=x"], ["folder=x", "--output", "y", "--size", "big"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "promise-prepare --help" in capsys.readouterr().err


def test_the_list_of_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-layouts"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    polyps = ["kvasir-seg", "cvc-clinicdb", "cvc-300", "cvc-colondb", "etis"]
    assert names == [*polyps, "isic2018", "folder", "pranet", "csv"]


def test_a_folder_that_may_not_be_listed_is_one_line_and_an_unrelated_one_is_left_out(
    phantoms: Path, as_other_user
) -> None:
    folder, run = as_other_user
    shutil.copytree(phantoms.parent / "images", folder / "set/images")
    shutil.copytree(phantoms.parent / "masks", folder / "set/masks")
    words = ["--in-place", "--fractions", "0", "0", "1", "--quiet", "--output"]
    for path in (folder, *folder.rglob("*/")):
        path.chmod(0o755)
    (folder / "lost+found").mkdir(mode=0o000)
    folder.chmod(0o777)
    assert run(lambda: main([f"folder={folder}", *words, str(folder / "out")]))[0] == 0
    assert read_table(folder / "out/split.csv").counts == {"test": 12}
    (folder / "set/images").chmod(0o000)
    status, error = run(lambda: main([f"folder={folder}", *words, str(folder / "again")]))
    assert (status, error) == (1, f"promise-prepare: {folder}/set/images cannot be listed (Permission denied).\n")
