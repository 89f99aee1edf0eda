"""The Python API: masks equal those that are scored, for every type of image, and prompts equal SAM's."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import promise
from promise import checkpoint
from promise.data.images import read_image
from promise.data.masks import read_mask
from promise.data.table import read_table
from promise.evaluation.config import EvalConfig
from promise.evaluation.evaluate import evaluate
from promise.evaluation.metrics import binary_metrics
from promise.inference.segmentation import Segmentation
from promise.inference.segmenter import Segmenter
from promise.inference.session import Session
from promise.runtime.errors import MissingFileError

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


def save(build: Any, path: Path, name: str = "APM_IPS_cross", **other: Any) -> Path:
    net = build(name, num_points=4)
    known = {"sam_checkpoint": "random", "seed": 5, **other}
    checkpoint.save(net, path, checkpoint.Metadata(name, "tiny_vit", 4, net.sam.weights_sha256(), **known))
    return path


@pytest.fixture(scope="module")
def ckpt(build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build, tmp_path_factory.mktemp("run") / "best.safetensors")


@pytest.fixture(scope="module")
def segmenter(ckpt: Path) -> Segmenter:
    return promise.load(ckpt, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    generator = np.random.default_rng(3)
    small = generator.integers(0, 255, (9, 12, 3), np.uint8)
    return cv2.resize(small, (90, 50), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def session(segmenter: Segmenter, pixels: np.ndarray) -> Session:
    return segmenter.session(pixels)


def same(a: Segmentation, b: Segmentation) -> bool:
    names = ("mask", "probability", "logits", "points", "labels", "ious")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names) and a.iou == b.iou


def test_a_result_has_the_size_of_the_image(segmenter, pixels) -> None:
    found = segmenter.predict(pixels)
    assert found.mask.shape == found.probability.shape == (50, 90)
    assert (found.mask.dtype, found.probability.dtype, found.logits.dtype) == (np.bool_, np.float32, np.float32)
    assert 0 < found.area == found.mask.sum() < found.mask.size
    assert found.fraction == found.share == found.area / 4500
    assert np.array_equal(found.mask, found.probability >= 0.5)
    assert found.logits.shape == (16, 16)
    assert found.points.shape == (4, 2)
    assert ((found.points >= -1) & (found.points <= [90, 50])).all()
    assert found.labels.tolist() == [1, 1, 0, 0]
    assert found.box is None
    assert found.ious.shape == (3,)
    assert found.iou == pytest.approx(float(found.ious[0]))
    assert (found.mask_index, found.choice, found.seconds > 0) == (0, 0, True)


def test_contours_follow_components_and_holes(segmenter, pixels) -> None:
    mask = np.zeros((50, 90), bool)
    mask[10:30, 20:60] = True
    mask[15:20, 30:40] = False
    outlines = dataclasses.replace(segmenter.predict(pixels), mask=mask).contours()
    corners = sorted(sorted(map(tuple, outline.tolist())) for outline in outlines)
    assert corners[0] == [(20, 10), (20, 29), (59, 10), (59, 29)]
    assert corners[1][0] == (29, 15)  # the outline of a hole is inside the mask
    assert len(corners) == 2


def test_all_types_of_images_give_the_same_result(segmenter, pixels, tmp_path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = segmenter.predict(path)
    images = [
        str(path),
        pixels,
        Image.fromarray(pixels),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
    ]
    images += [np.dstack((pixels, pixels[:, :, :1])), Image.fromarray(pixels).convert("RGBA")]  # alpha is dropped
    for image in images:
        assert same(segmenter.predict(image), expected)
    grey = pixels[:, :, 1]
    expected = segmenter.predict(np.repeat(grey[:, :, None], 3, axis=2))
    for image in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert same(segmenter.predict(image), expected)


def test_16_bit_arrays_are_read_like_files(segmenter, pixels, tmp_path) -> None:
    deep = pixels[:, :, 0].astype(np.uint16) * 9 + 300
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert same(segmenter.predict(deep), segmenter.predict(tmp_path / "deep.png"))


def test_a_list_gives_the_results_of_its_images(segmenter, pixels) -> None:
    images = [pixels, pixels[::-1].copy(), pixels[:, :40].copy(), pixels[5:].copy(), pixels[:, ::-1].copy()]
    for size in (1, 2, 8):
        found = segmenter.predict(images, batch_size=size)
        assert [f.mask.shape for f in found] == [i.shape[:2] for i in images]
        for one, image in zip(found, images, strict=True):
            single = segmenter.predict(image)
            np.testing.assert_allclose(one.logits, single.logits, atol=1e-4)
            np.testing.assert_allclose(one.points, single.points, atol=1e-3)
    assert segmenter.predict([]) == []


def test_masks_equal_those_that_are_scored(ckpt, segmenter, phantoms, tmp_path) -> None:
    evaluate(
        EvalConfig(
            ckpt=str(ckpt),
            split_csv=(str(phantoms),),
            split="train",
            device="cpu",
            precision="fp32",
            workers=0,
            cache="off",
            quiet=True,
            output=str(tmp_path / "eval"),
        )
    )
    rows = read_table(phantoms).split("train")
    found = segmenter.predict([row.image for row in rows])
    with (tmp_path / "eval/per_image.csv").open() as stream:
        for line, row, one in zip(csv.DictReader(stream), rows, found, strict=True):
            assert float(line["native_dice"]) == pytest.approx(
                binary_metrics(one.mask, read_mask(row.mask))["dice"], abs=0
            )
            assert int(line["native_predicted_pixels"]) == one.area
            assert float(line["predicted_iou"]) == one.iou


# --- prompts -------------------------------------------------------------------------------------


def test_a_session_gives_the_result_of_predict(segmenter, session, pixels) -> None:
    assert session.size == (90, 50)
    auto = session.automatic()
    assert same(auto, segmenter.predict(pixels))
    assert same(auto, session.predict())
    assert same(auto, session.predict(points=[], labels=[]))
    assert same(auto, session.predict(points=auto.points, labels=auto.labels))
    assert same(auto, session.predict(torch.from_numpy(auto.points), auto.labels.tolist()))


def test_prompts_change_the_result_and_are_returned(session) -> None:
    one = session.predict(points=[[20, 10.5]])
    assert one.points.tolist() == [[20, 10.5]]
    assert one.labels.tolist() == [1]
    other = session.predict(points=[[20, 10.5]], labels=[0])
    boxed = session.predict(box=(5, 6, 60, 40))
    both = session.predict(points=[[20, 10.5]], box=np.array([5, 6, 60, 40]))
    assert boxed.points.shape == (0, 2)
    assert boxed.box.tolist() == [5, 6, 60, 40]
    logits = [r.logits for r in (one, other, boxed, both)]
    for i, a in enumerate(logits):
        for b in logits[:i]:
            assert not np.array_equal(a, b)


def decode_with_sam(segmenter: Segmenter, session: Session, *, points=None, box=None, mask=None) -> tuple[Any, Any]:
    """SAM's own prompt encoder and mask decoder, with the net's token shift in its mask tokens."""
    net, encoded = segmenter.net, session._encoded
    sam, scale = net.sam, 64 / np.array([90, 50])

    def at(xy: Any) -> torch.Tensor:
        return torch.tensor(((np.reshape(xy, (1, -1, 2)) + 0.5) * scale - 0.5), dtype=torch.float32)

    before = sam.mask_decoder.mask_tokens.weight.clone()
    with torch.no_grad():
        sam.mask_decoder.mask_tokens.weight.add_(net.ips(encoded.embedding)[0])
        try:
            sparse, dense = sam.prompt_encoder(
                points=None if points is None else (at(points[0]), torch.tensor([points[1]])),
                boxes=None if box is None else at(box).reshape(1, 4),
                masks=None if mask is None else torch.from_numpy(mask)[None, None],
            )
            logits, ious = sam.mask_decoder(
                image_embeddings=encoded.embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        finally:
            sam.mask_decoder.mask_tokens.weight.copy_(before)
    return logits[0].numpy(), ious[0].numpy()


@pytest.mark.parametrize(
    "kinds",
    [("points",), ("box",), ("mask",), ("points", "mask"), ("box", "mask"), ("points", "box", "mask")],
    ids="+".join,
)
def test_prompts_are_encoded_as_by_sam(kinds, segmenter, session) -> None:
    earlier = session.predict(points=[[3, 4]]).logits
    prompts = {"points": ([[20, 10.5], [70, 44]], [1, 0]), "box": [5, 6, 60, 40], "mask": earlier}
    prompts = {kind: prompts[kind] for kind in kinds}
    logits, ious = decode_with_sam(segmenter, session, **prompts)
    values = SimpleNamespace(**{"points": (None, None), "box": None, "mask": None, **prompts})
    for index in (0, 1, 2):
        found = session.predict(*values.points, box=values.box, mask=values.mask, mask_index=index)
        assert found.mask_index == index
        np.testing.assert_allclose(found.logits, logits[index], atol=5e-5)
        np.testing.assert_allclose(found.ious, ious, atol=5e-5)
        assert found.iou == found.ious[index]
    assert len({a.tobytes() for a in logits}) == 3


def test_choice_is_the_older_name_of_mask_index(session, user_error) -> None:
    prompts = {"points": [[20, 10]]}
    found = session.predict(**prompts, choice=2)
    assert (found.mask_index, found.choice) == (2, 2)
    for same_prompts in ({"mask_index": 2}, {"mask_index": 2, "choice": 2}):
        assert same(found, session.predict(**prompts, **same_prompts))
    assert same(found, session.predict([[20, 10]], None, None, None, 2))
    assert same(found, session.predict(**prompts, mask_index=np.arange(3).argmax()))
    assert not same(found, session.predict(**prompts))
    with user_error("conflicting-mask-index"):
        session.predict(**prompts, mask_index=1, choice=2)


def test_a_result_does_not_depend_on_earlier_ones(session) -> None:
    first = session.predict(points=[[20, 10]])
    session.predict(points=[[50, 40]], labels=[0], mask=first.logits, mask_index=2)
    assert same(first, session.predict(points=[[20, 10]]))


@pytest.mark.parametrize(
    ("prompts", "codes", "fact"),
    [
        ({"points": [[1, 2, 3]]}, ["invalid-points"], "[x, y]"),
        ({"points": [[1, 2], [3]]}, ["invalid-points"], "[x, y]"),
        ({"points": 3}, ["invalid-points", "invalid-labels"], "[x, y]"),
        ({"points": [[1, np.nan]]}, ["invalid-points"], "[x, y]"),
        ({"points": [[1, 2]], "labels": [1, 0]}, ["label-count-mismatch"], "1 points and 2 labels"),
        ({"points": [[1, 2]], "labels": [2]}, ["invalid-labels"], "labels"),
        ({"labels": [1]}, ["label-count-mismatch"], "0 points and 1 labels"),
        ({"points": [[95, 2]]}, ["prompt-outside-image"], "point (95, 2) is outside the image of 90 × 50 pixels"),
        ({"box": [9, 9, 1, 1]}, ["invalid-box"], "box"),
        ({"mask": np.zeros((4, 4))}, ["mask-shape-mismatch"], "(16, 16) logits of an earlier result, not (4, 4)"),
        ({"mask": np.full((16, 16), np.inf)}, ["mask-not-finite"], "mask"),
        ({"points": [[1, 2]], "mask_index": 3}, ["invalid-mask-index"], "0, 1 or 2, not 3"),
        ({"points": [[1, 2]], "choice": 3}, ["invalid-mask-index"], "0, 1 or 2, not 3"),
        (
            {"points": [[1, 2]], "labels": [5], "box": [1], "mask_index": -1},
            ["invalid-labels", "invalid-box", "invalid-mask-index"],
            "not -1",
        ),
    ],
)
def test_invalid_prompts_are_refused(prompts, codes, fact, session, user_error) -> None:
    with user_error(*codes) as caught:
        session.predict(**prompts)
    assert list(caught.value.codes) == codes
    assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("image", "fact"),
    [
        (np.zeros((5, 5, 2), np.uint8), "(5, 5, 2) of uint8"),
        (np.zeros((5, 5, 3)), "(5, 5, 3) of float64"),
        (np.zeros((0, 5, 3), np.uint8), "(0, 5, 3)"),
        (torch.zeros(1, 3, 5, 5), "(1, 3, 5, 5) of float32"),
    ],
)
def test_arrays_that_are_not_images_are_refused(image, fact, segmenter, user_error) -> None:
    with user_error() as caught:
        segmenter.predict(image)
    assert fact in str(caught.value)


def test_a_missing_image_is_reported(segmenter, tmp_path) -> None:
    with pytest.raises(MissingFileError) as caught:
        segmenter.predict(tmp_path / "nowhere.png")
    assert str(tmp_path / "nowhere.png") in str(caught.value)


# --- loading -------------------------------------------------------------------------------------


def test_the_tuned_postprocessing_is_the_default(build, pixels, tmp_path, user_error) -> None:
    path = save(build, tmp_path / "tuned.safetensors", postprocess="threshold:0.45,largest")
    tuned = promise.load(path, device="cpu", precision="fp32")
    assert str(tuned.postprocess) == "threshold:0.45,largest"
    found = tuned.predict(pixels)
    assert np.array_equal(found.mask, tuned.postprocess(found.probability))
    for setting, expected in (("none", "none"), ("default", "none"), ("open:3,fill", "open:3,fill")):
        assert str(promise.load(path, device="cpu", precision="fp32", postprocess=setting).postprocess) == expected
    with user_error("invalid-postprocess") as caught:
        promise.load(path, postprocess="opn")
    assert "'opn'" in str(caught.value)


def test_a_net_without_a_prompter_requires_prompts(build, pixels, tmp_path, user_error) -> None:
    segmenter = promise.load(save(build, tmp_path / "ips.safetensors", "IPS_GT"), device="cpu", precision="fp32")
    assert segmenter.needs_prompts
    session = segmenter.session(pixels)
    calls = (lambda: segmenter.predict(pixels), session.automatic, session.predict, lambda: session.predict([]))
    for call in calls:
        with user_error("net-without-prompter") as caught:
            call()
        assert "IPS_GT" in str(caught.value)
    assert session.predict(points=[[20, 10]]).mask.shape == (50, 90)


@pytest.mark.parametrize("text", ["open:99999", "opn", "open:" + "9" * 5000])
def test_an_invalid_postprocessing_of_a_checkpoint_is_one_message(build, text: str, tmp_path, user_error) -> None:
    path = save(build, tmp_path / "best.safetensors", postprocess=text)
    with user_error("invalid-kernel" if text == "open:99999" else "invalid-postprocess") as caught:
        promise.load(path, device="cpu")
    assert str(path) in str(caught.value)
    assert "--postprocess" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert promise.load(path, device="cpu", postprocess="open:5").postprocess.kernel == 5


@pytest.mark.parametrize("value", [b"scan.png", None, 3])
def test_a_value_that_is_no_image_is_one_message(segmenter, value: Any, user_error) -> None:
    for read in (segmenter.predict, segmenter.session, lambda one: segmenter.predict([one])):
        with user_error("invalid-image-array") as caught:
            read(value)
        assert type(value).__name__ in str(caught.value)


def test_prompts_beyond_all_limits_are_one_message(session, user_error) -> None:
    for points, code in (
        (np.zeros((10_000, 2)), "too-many-points"),
        ([[10**400, 1]], "invalid-points"),
        ([[math.nan, 1]], "invalid-points"),
    ):
        with user_error(code):
            session.predict(points=points)


def test_a_missing_checkpoint_is_reported(tmp_path) -> None:
    with pytest.raises(MissingFileError) as caught:
        promise.load(tmp_path / "best.safetensors")
    assert str(tmp_path / "best.safetensors") in str(caught.value)


def test_the_package_exports_the_names_of_the_module() -> None:
    from promise.inference import segmenter

    assert (promise.load, promise.Segmenter, promise.Session) == (segmenter.load, Segmenter, Session)
    assert promise.Segmentation is Segmentation


def test_the_exif_orientation_is_applied(segmenter, pixels, tmp_path) -> None:
    rotated = Image.fromarray(pixels)
    rotated.getexif()[0x0112] = 6
    rotated.save(tmp_path / "rotated.png", exif=rotated.getexif())
    upright = read_image(tmp_path / "rotated.png")
    assert upright.shape == (90, 50, 3)
    with Image.open(tmp_path / "rotated.png") as opened:
        assert same(segmenter.predict(opened), segmenter.predict(upright))
    assert same(segmenter.predict(tmp_path / "rotated.png"), segmenter.predict(upright))
