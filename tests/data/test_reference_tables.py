from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pytest

from promise.data.check import check_files
from promise.data.table import read_table
from promise.data.validate.validate import validate

REFERENCE = {
    "combined_5_1024": {"train": 1450, "val": 798},
    "split_CVC-300_1024": {"train": 1450, "val": 60},
    "split_CVC-ClinicDB_1024": {"val": 62},
    "split_CVC-ColonDB_1024": {"val": 380},
    "split_ETIS-LaribPolypDB_1024": {"val": 196},
    "split_Kvasir_1024": {"val": 100},
    "split_ISIC_1024": {"train": 2594, "val": 100, "test": 1000},
}
ISIC_FOLDERS = {
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def polyp_files(rows: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """The usual folders: TrainDataset and TestDataset in one folder, without size suffixes."""
    pairs = []
    for row in rows:
        below = (row[key].split("/polyp/")[1].replace("_1024", "") for key in ("image_name", "mask_name"))
        pairs.append((next(below), next(below)))
    return pairs


def isic_files(rows: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """The folders of the archives of ISIC."""
    pairs = []
    for row in rows:
        number = re.search(r"ISIC_\d{7}", row["image_name"])[0]
        image, mask = ISIC_FOLDERS[row["train_type"]]
        pairs.append((f"{image}/{number}.jpg", f"{mask}/{number}_segmentation.png"))
    return pairs


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_tables_load_unchanged(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "reference_csv" / f"{name}.csv"
    expected = (isic_files if "ISIC" in name else polyp_files)(read_rows(path))
    stub = tmp_path / "stub"
    stub.touch()
    for file in {file for pair in expected for file in pair}:
        (tmp_path / "root" / file).parent.mkdir(parents=True, exist_ok=True)
        os.link(stub, tmp_path / "root" / file)
    table = read_table(path, data_root=tmp_path / "root")
    assert table.counts == REFERENCE[name]
    assert len({row.name for row in table.rows}) == len(table.rows)
    below = [tuple(p.relative_to(tmp_path / "root").as_posix() for p in (r.image, r.mask)) for r in table.rows]
    assert below == expected
    assert not any(PurePosixPath(row.name).is_absolute() for row in table.rows)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "suffix"), [("CVC-ClinicDB", "cvc_clinicdb", ".png"), ("Kvasir", "kvasir_seg", ".jpg")]
)
def test_reference_tables_load_onto_the_real_images(shared: Path, name: str, folder: str, suffix: str) -> None:
    root = shared / "data" / folder
    if not root.is_dir():
        pytest.skip(f"{root} does not exist")
    table = read_table(shared / "reference_csv" / f"split_{name}_1024.csv", data_root=root)
    assert table.counts == REFERENCE[f"split_{name}_1024"]
    assert {row.image.suffix for row in table.rows} == {suffix}
    assert check_files(table.rows[:5], csv_path=table.path, level="full", progress=False) == []


def test_the_repository_example_and_template(tmp_path: Path, write_pair: Callable[..., None]) -> None:
    data_format = Path(__file__).parents[2] / "data_format"
    table = read_table(data_format / "example/split.csv")
    assert table.counts == {"train": 1, "val": 1, "test": 1}
    assert check_files(table.rows, csv_path=table.path, level="full", progress=False) == []
    for stem in ("0001", "0002", "0003"):
        write_pair(tmp_path, stem)
    template = read_table(data_format / "template.csv", data_root=tmp_path)
    assert template.counts == {"train": 1, "val": 1, "test": 1}


def test_the_dermoscopy_images_of_the_repository_are_small_and_clean() -> None:
    folder = Path(__file__).parents[2] / "data_format/skin"
    result = validate([folder / "split.csv"], progress=False)
    assert [finding for finding in result.findings if finding.level != "note"] == []
    assert Counter(entry.row.split for entry in result.entries) == {"train": 160, "val": 20, "test": 60}
    assert {entry.inspection.size for entry in result.entries} == {(256, 256)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 * 240 + 3
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    held_out = (folder / "held_out.txt").read_text().split()
    assert len(set(held_out)) == 200
    assert not {entry.row.image.stem for entry in result.entries} & set(held_out)
