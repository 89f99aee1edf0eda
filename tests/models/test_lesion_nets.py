"""Nets that find lesions: unions of the masks of prompt sets, fusion with the map, and settings in the checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from promise.models import checkpoint
from promise.models.promise import NO_LESION, Promise
from promise.models.prompters.lesions import LesionSettings
from promise.models.registry import NETS
from promise.types import Points, Prompts

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")
BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 30.0, 20.0], [30.0, 30.0, 60.0, 60.0]])
MAPS = [name for name, spec in NETS.items() if spec.trains_map]


@pytest.fixture(scope="module", params=MAPS)
def net(request: pytest.FixtureRequest, build: Callable[..., Promise]) -> Promise:
    net = build(request.param, num_points=4).eval()
    net.apm.lesions = LesionSettings(min_score=0, min_probability=0)  # random weights
    return net


@pytest.fixture(scope="module")
def encoded(net: Promise) -> Any:
    with torch.inference_mode():
        return net.encode(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(7)))


@torch.inference_mode()
def test_a_batch_decodes_the_sets_of_each_image(net: Promise, encoded: Any) -> None:
    """Two lesions in the first image, none in the second, one in the third."""
    together = net.decode(encoded, Prompts(boxes=BOXES, image=torch.tensor([0, 0, 2])))
    first, third = (encoded.map(lambda x, i=i: x[i : i + 1]) for i in (0, 2))
    singles = [net.decode(one, Prompts(boxes=BOXES[i : i + 1])) for i, one in enumerate((first, first, third))]
    logits = [one.mask_logits[0] for one in singles]
    torch.testing.assert_close(together.mask_logits[0], torch.maximum(*logits[:2]), atol=1e-5, rtol=1e-5)
    assert (together.mask_logits[1] == NO_LESION).all()
    torch.testing.assert_close(together.mask_logits[2], logits[2], atol=1e-5, rtol=1e-5)
    assert together.iou[1] == 0
    torch.testing.assert_close(together.iou[0], (singles[0].iou + singles[1].iou)[0] / 2, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_one_set_per_image_is_the_same_with_and_without_its_image(net: Promise, encoded: Any) -> None:
    plain = net.decode(encoded, Prompts(boxes=BOXES))
    owned = net.decode(encoded, Prompts(boxes=BOXES, image=torch.arange(3)))
    assert torch.equal(plain.mask_logits, owned.mask_logits)
    assert torch.equal(plain.ious, owned.ious)


@torch.inference_mode()
def test_low_logits_are_kept(net: Promise, encoded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of SAM below those of an image without a lesion are not limited."""
    low = torch.full((2, 1, 16, 16), NO_LESION - 15)
    monkeypatch.setattr(net.sam, "decode", lambda *_, **__: (low, torch.ones(2, 4)))
    found = net.decode(encoded, Prompts(boxes=BOXES[:2], image=torch.tensor([0, 2]))).mask_logits
    assert [float(one.unique()) for one in found] == [NO_LESION - 15, NO_LESION, NO_LESION - 15]


@torch.inference_mode()
def test_the_map_is_added_on_request(net: Promise, encoded: Any) -> None:
    prompts = Prompts(Points(torch.full((3, 1, 2), 30.0), torch.ones(3, 1, dtype=torch.int64)))
    plain, fused = (net.decode(encoded, prompts, fuse=fuse) for fuse in (None, True))
    maps = torch.nn.functional.interpolate(net.lesion_map(encoded), size=(16, 16), mode="bilinear")
    torch.testing.assert_close(fused.mask_logits, torch.lerp(plain.mask_logits, maps, 0.5))
    assert plain.lesion_logits is None
    automatic, without = net.decode(encoded), net.decode(encoded, fuse=False)
    again = net.decode(encoded, automatic.prompts, fuse=True)
    assert torch.equal(again.mask_logits, automatic.mask_logits)
    assert torch.equal(net.decode(encoded, automatic.prompts).mask_logits, without.mask_logits)
    assert not torch.equal(automatic.mask_logits, without.mask_logits)


# --- settings in the checkpoint ------------------------------------------------------------------


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as stream:
        return json.loads(stream.metadata()["promise"])


def change(path: Path, lesions: Any) -> Path:
    values = header(path)
    values.pop("lesions")
    if lesions is not None:
        values["lesions"] = lesions
    metadata = {"format": checkpoint.FORMAT, "promise": json.dumps(values)}
    safetensors.torch.save_file(safetensors.torch.load(path.read_bytes()), path, metadata=metadata)
    return path


def test_lesion_settings_are_restored(save_lesion_net: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"max_lesions": 2, "threshold": 0.25, "prompts": "points", "output": "multimask", "fuse": 0.0}
    path = save_lesion_net(tmp_path / "a.safetensors", **settings)
    net, metadata = checkpoint.load(path)
    expected = LesionSettings(**{"min_score": 0.025, "flips": False, **settings})
    assert net.lesions == expected
    assert metadata.lesions == header(path)["lesions"] == dataclasses.asdict(expected)
    checkpoint.rewrite_metadata(path, dataclasses.replace(metadata, postprocess="fill"))
    assert checkpoint.load(path)[0].lesions == expected


def test_settings_that_a_checkpoint_does_not_contain_keep_their_defaults(
    save_lesion_net: Callable[..., Path], tmp_path: Path
) -> None:
    path = change(save_lesion_net(tmp_path / "a.safetensors"), {"max_lesions": 2, "threshold": 0.5})
    assert checkpoint.load(path)[0].lesions == LesionSettings(max_lesions=2)
    assert checkpoint.load(change(path, None))[0].lesions == LesionSettings()


def test_other_nets_store_no_lesion_settings(build: Callable[..., Promise], tmp_path: Path) -> None:
    net = build("APM_cross", num_points=4)
    path = tmp_path / "a.safetensors"
    checkpoint.save(net, path, checkpoint.Metadata("APM_cross", "tiny_vit", 4, net.sam.weights_sha256(), seed=0))
    assert "lesions" not in header(path)  # earlier versions can read it
    assert checkpoint.read_metadata(path).lesions is None


@pytest.mark.parametrize(
    ("lesions", "code", "fact"),
    [
        ({"max_lesion": 2}, "unknown-lesion-setting", "max_lesion (known: max_lesions, threshold"),
        ({"max_lesions": "2"}, "invalid-lesion-settings", "max_lesions: '2'"),
        ({"mask_prompt": 1}, "invalid-lesion-settings", "mask_prompt: 1"),
        ({"threshold": 2.0}, "invalid-lesion-settings", "2.0"),
    ],
)
def test_invalid_settings_in_a_checkpoint_are_reported(
    lesions: Any, code: str, fact: str, save_lesion_net: Callable[..., Path], tmp_path: Path, user_error: Any
) -> None:
    path = change(save_lesion_net(tmp_path / "a.safetensors"), lesions)
    with user_error(code) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert fact in str(caught.value)
