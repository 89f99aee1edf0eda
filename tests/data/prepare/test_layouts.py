from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promise.data.prepare.layouts import LAYOUTS, NAMES, ImageSet, Part, Rule, find_sets
from promise.runtime.errors import MissingFileError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def shown(found: ImageSet, root: Path) -> list[tuple[str, str, str, str]]:
    return [
        (p.name, p.image.relative_to(root).as_posix(), p.mask.relative_to(root).as_posix(), p.split)
        for p in found.pairs
    ]


@pytest.mark.parametrize(
    ("layout", "image", "mask", "short"),
    [
        ("kvasir-seg", "images/cju0.jpg", "masks/cju0.jpg", "kvasir"),
        ("kvasir-seg", "Kvasir-SEG/images/cju0.jpg", "Kvasir-SEG/masks/cju0.jpg", "kvasir"),
        ("cvc-clinicdb", "Original/1.tif", "Ground Truth/1.tif", "clinicdb"),
        ("cvc-clinicdb", "original/1.tiff", "ground_truth/1.tiff", "clinicdb"),
        ("cvc-clinicdb", "PNG/Original/1.png", "PNG/Ground Truth/1.png", "clinicdb"),
        ("cvc-300", "bbdd/149.bmp", "gtpolyp/149.bmp", "cvc300"),
        ("cvc-colondb", "CVC-ColonDB/1.tiff", "CVC-ColonDB/p1.tiff", "colondb"),
        ("cvc-colondb", "images/1.png", "masks/1.png", "colondb"),
        ("etis", "ETIS-LaribPolypDB/1.tif", "Ground Truth/p1.tif", "etis"),
        ("folder", "images/a.BMP", "masks/a_mask.png", None),
        ("folder", "imgs/a.png", "masks/a-mask.png", None),
    ],
)
def test_pairs_of_each_layout(tmp_path: Path, layout: str, image: str, mask: str, short: str | None) -> None:
    root = touch(tmp_path / "My set", image, mask)
    (found,) = find_sets(layout, root)
    assert shown(found, root) == [(Path(image).stem, image, mask, "")]
    assert found.unpaired == ()
    assert found.name == (short or "My_set")


@pytest.mark.parametrize(
    ("folders", "suffix"),
    [
        (
            {
                "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
                "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
                "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
            },
            "_segmentation",
        ),
        (
            {
                "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
                "val": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
                "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
            },
            "_segmentation",
        ),
        (
            {
                "train": ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
                "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
            },
            "_Segmentation",
        ),
    ],
    ids=["2018", "2017", "2016"],
)
def test_the_isic_challenges(tmp_path: Path, folders: dict[str, tuple[str, str]], suffix: str) -> None:
    expected = []
    for number, (split, (images, masks)) in enumerate(folders.items()):
        stem = f"ISIC_000000{number}"
        touch(tmp_path, f"{images}/{stem}.jpg", f"{images}/{stem}_superpixels.png", f"{images}/metadata.csv")
        touch(tmp_path, f"{masks}/{stem}{suffix}.png")
        expected.append((stem, f"{images}/{stem}.jpg", f"{masks}/{stem}{suffix}.png", split))
    (found,) = find_sets("isic2018", tmp_path)
    assert shown(found, tmp_path) == expected
    assert found.unpaired == ()


def test_pranet_is_a_training_set_and_test_sets(tmp_path: Path) -> None:
    touch(tmp_path, "polyp/TrainDataset/image/a.png", "polyp/TrainDataset/mask/a.png")
    for name in ("CVC-300", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "Kvasir", "Mine"):
        touch(tmp_path, f"polyp/TestDataset/{name}/images/1.png", f"polyp/TestDataset/{name}/masks/1.png")
    sets = find_sets("pranet", tmp_path)
    assert [s.name for s in sets] == ["train", "cvc300", "clinicdb", "colondb", "etis", "kvasir", "Mine"]
    assert [{p.split for p in s.pairs} for s in sets] == [{"train"}] + [{"test"}] * 6


def test_split_folders(tmp_path: Path) -> None:
    for word in ("train", "valid", "test"):
        touch(tmp_path, f"{word}/images/{word}.png", f"{word}/masks/{word}.png")
    (found,) = find_sets("folder", tmp_path)
    assert [(p.name, p.split) for p in found.pairs] == [("train", "train"), ("valid", "val"), ("test", "test")]


def test_custom_folders_and_rules(tmp_path: Path) -> None:
    touch(tmp_path, "raw/x_img.png", "gt/seg_x_gt.png")
    part, rule = Part("raw", "gt"), Rule(prefix="seg_", suffix="_gt", drop="_img")
    (found,) = find_sets("folder", tmp_path, part=part, rule=rule)
    assert shown(found, tmp_path) == [("x_img", "raw/x_img.png", "gt/seg_x_gt.png", "")]


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "b_mask.png", "c.png")
    (found,) = find_sets("folder", tmp_path, part=Part(".", "."), rule=Rule(suffix="_mask"))
    assert [(p.name, p.mask.name) for p in found.pairs] == [("a", "a_mask.png"), ("b", "b_mask.png")]
    assert found.unpaired == (f"{tmp_path}: images without a mask in {tmp_path} (1): c.png",)


def test_unpaired_images_and_masks(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/c.png")
    (found,) = find_sets("kvasir-seg", tmp_path)
    assert [p.name for p in found.pairs] == ["a"]
    assert [text.rsplit(" ", 2)[1:] for text in found.unpaired] == [["(1):", "b.png"], ["(1):", "c.png"]]


def test_an_unknown_layout_suggests_the_nearest(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    with user_error("unknown-layout") as caught:
        find_sets("kvasir", tmp_path)
    assert "'kvasir'" in str(caught.value)
    assert "'kvasir-seg'?" in str(caught.value)


@pytest.mark.parametrize("layout", [*LAYOUTS, "pranet"])
def test_absent_and_empty_folders(tmp_path: Path, layout: str, user_error: Callable[..., Any]) -> None:
    with pytest.raises(MissingFileError) as missing:
        find_sets(layout, tmp_path / "absent")
    assert missing.value.code == "missing-folder"
    assert f"{layout}={tmp_path / 'absent'}" in str(missing.value)
    with user_error("layout-not-found") as caught:
        find_sets(layout, tmp_path)
    assert f"{layout}={tmp_path}" in str(caught.value)
    with user_error("layout-not-found") as caught:
        find_sets("folder", tmp_path)
    assert "images/ and masks/; " in str(caught.value)
    assert "--images DIR --masks DIR" in str(caught.value)


def test_flags_are_suggested_only_if_they_apply(tmp_path: Path, user_error: Callable[..., Any]) -> None:
    for layout, part in (("kvasir-seg", None), ("folder", Part("a", "b"))):
        with user_error("layout-not-found") as caught:
            find_sets(layout, tmp_path, part=part)
        assert "--images" not in str(caught.value)


def test_every_layout_has_a_description() -> None:
    assert {*NAMES} == {*LAYOUTS, "pranet", "csv"}
    assert all(layout.text for layout in LAYOUTS.values())
    assert [name for name, layout in LAYOUTS.items() if layout.any_folder] == ["folder"]
