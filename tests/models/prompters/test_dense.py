"""The dense prompter: lesions of a map and their prompts, and the masks that are decoded from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from promise.models.promise import NO_LESION
from promise.models.prompters.dense import DenseHead, DensePrompter
from promise.models.prompters.lesions import LesionSettings, find_lesions
from promise.models.registry import NETS, build_parts, parse_net_name
from promise.models.sam.backbones import get_backbone
from promise.types import Encoded, Prompts

DENSE = [name for name, spec in NETS.items() if spec.trains_map]
SIDE = 64


def blob(*boxes: tuple[int, int, int, int], inside: float = 0.9, outside: float = 0.02) -> np.ndarray:
    """A map (64, 64) with rectangles x0, y0, x1, y1, both ends included."""
    probability = np.full((SIDE, SIDE), outside, np.float32)
    for x0, y0, x1, y1 in boxes:
        probability[y0 : y1 + 1, x0 : x1 + 1] = inside
    return probability


def images(count: int, net) -> Tensor:
    side = net.sam.backbone.image_size
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7))


class FixedHead(torch.nn.Module):
    """Logits that do not depend on the features."""

    def __init__(self, *maps: np.ndarray) -> None:
        super().__init__()
        self.maps = torch.logit(torch.from_numpy(np.stack(maps)))[:, None]

    def forward(self, _embedding: Tensor, _taps: object) -> Tensor:
        return self.maps


def with_maps(net, *maps: np.ndarray, **settings):
    """A net whose prompter sees these maps."""
    prompter = DensePrompter(
        FixedHead(*maps),
        num_points=4,
        image_size=net.sam.backbone.image_size,
        settings=LesionSettings(**{"flips": False, **settings}),
    )
    net.apm = prompter
    return net.eval()


def test_box_and_points_of_a_lesion() -> None:
    (lesion,) = find_lesions(blob((10, 20, 29, 39)), LesionSettings(), positive=3, negative=4)
    assert lesion.box.tolist() == [10, 20, 29, 39]
    assert lesion.score == pytest.approx(0.9 * 400 / SIDE**2)
    assert lesion.label.tolist() == [1, 1, 1, 0, 0, 0, 0]
    x, y = lesion.xy[:3].T
    assert ((x > 10) & (x < 29) & (y > 20) & (y < 39)).all()
    assert (abs(lesion.xy[0] - [19.5, 29.5]) <= 1).all()  # the deepest point is the centre
    x, y = lesion.xy[3:].T
    assert ((x < 10) | (x > 29) | (y < 20) | (y > 39)).all()
    assert len({tuple(point) for point in lesion.xy.tolist()}) == 7


def test_positive_points_lie_in_the_core_of_a_lesion() -> None:
    probability = np.zeros((40, 60), np.float32)
    probability[10:30, 5:55] = 0.7
    (lesion,) = find_lesions(probability, LesionSettings(), positive=4, negative=0)
    assert np.ptp(lesion.xy[:, 0]) > 20  # no core: anywhere inside
    probability[12:20, 40:50] = 0.95
    (lesion,) = find_lesions(probability, LesionSettings(), positive=4, negative=0)
    assert all(probability[int(y), int(x)] >= 0.9 for x, y in lesion.xy)
    assert lesion.box.tolist() == [5, 10, 54, 29]


def test_negative_points_avoid_other_lesions() -> None:
    maps = blob((10, 10, 19, 19), (23, 10, 32, 19))
    for lesion in find_lesions(maps, LesionSettings(), positive=1, negative=8):
        for x, y in lesion.xy[1:].astype(int):
            assert maps[y, x] < 0.5


def test_lesions_are_sorted_by_score_and_limited() -> None:
    maps = blob((2, 2, 5, 5), (10, 10, 29, 29), (40, 40, 49, 49))
    boxes = [lesion.box.tolist() for lesion in find_lesions(maps, LesionSettings(), positive=1, negative=0)]
    assert boxes == [[10, 10, 29, 29], [40, 40, 49, 49], [2, 2, 5, 5]]
    two = find_lesions(maps, LesionSettings(max_lesions=2), positive=1, negative=0)
    assert [lesion.box.tolist() for lesion in two] == boxes[:2]
    strong = find_lesions(maps, LesionSettings(min_share=0.2), positive=1, negative=0)
    assert [lesion.box.tolist() for lesion in strong] == boxes[:2]
    large = find_lesions(maps, LesionSettings(min_score=0.05), positive=1, negative=0)
    assert [lesion.box.tolist() for lesion in large] == boxes[:1]


def test_weak_components_are_dropped() -> None:
    """By their mean probability, whatever their area."""
    maps = np.maximum(blob((2, 2, 40, 40), inside=0.7), blob((50, 50, 59, 59), inside=0.8))
    found = find_lesions(maps, LesionSettings(min_probability=0.75, min_share=0.5), positive=1, negative=0)
    assert [lesion.box.tolist() for lesion in found] == [[50, 50, 59, 59]]
    assert len(find_lesions(maps, LesionSettings(min_probability=0.69), positive=1, negative=0)) == 2


@pytest.mark.parametrize("maps", [blob(), np.zeros((8, 8), np.float32)])
def test_no_lesion(maps) -> None:
    assert find_lesions(maps, LesionSettings(), positive=2, negative=2) == []


def test_a_lesion_that_fills_the_map_has_no_negative_points() -> None:
    (lesion,) = find_lesions(np.ones((8, 8), np.float32), LesionSettings(), positive=2, negative=2)
    assert lesion.label.tolist() == [1, 1, -1, -1]
    assert lesion.box.tolist() == [0, 0, 7, 7]


def test_a_lesion_of_one_pixel_repeats_its_point() -> None:
    (lesion,) = find_lesions(blob((5, 7, 5, 7)), LesionSettings(min_score=0), positive=3, negative=1)
    assert lesion.xy[:3].tolist() == [[5, 7]] * 3


def test_invalid_settings_are_reported_together(user_error) -> None:
    with user_error("invalid-lesion-settings") as caught:
        LesionSettings(max_lesions=0, threshold=1.5, prompts="circle", output="second", fuse=1.0)
    assert len(caught.value.errors) == 5
    with user_error("invalid-lesion-settings"):
        LesionSettings(min_score=2)


def test_points_and_boxes_are_in_input_pixels() -> None:
    """A rectangle of the map covers the same part of the input."""
    prompter = DensePrompter(
        torch.nn.Identity(), num_points=4, image_size=256, settings=LesionSettings(prompts="box+points")
    )
    logits = torch.logit(torch.from_numpy(blob((16, 24, 31, 47))))[None, None]
    prompts = prompter.place_prompts(logits)
    torch.testing.assert_close(prompts.boxes, torch.tensor([[64.0, 96.0, 127.0, 191.0]]), atol=1.5, rtol=0)
    x, y = prompts.points.xy[0, 0].tolist()
    assert 80 < x < 112
    assert 120 < y < 168


@pytest.mark.parametrize("name", DENSE)
def test_a_net_of_several_lesions_equals_its_lesions_one_by_one(name, build) -> None:
    net = with_maps(build(name), blob((4, 4, 19, 19), (34, 34, 59, 59)), blob(), blob((8, 30, 30, 50)), fuse=0.0)
    image = images(3, net)
    with torch.no_grad():
        together = net(image)
        assert together.prompts.image.tolist() == [0, 0, 2]
        singles = [
            net(image[i : i + 1], Prompts(boxes=together.prompts.boxes[n : n + 1])) for n, i in enumerate((0, 0, 2))
        ]
    masks = [single.mask_logits for single in singles]
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(together.mask_logits[:1], torch.maximum(masks[0], masks[1]), **close)
    torch.testing.assert_close(together.mask_logits[2:], masks[2], **close)
    assert (together.mask_logits[1] == NO_LESION).all()
    torch.testing.assert_close(together.iou[0], (singles[0].iou[0] + singles[1].iou[0]) / 2, **close)
    assert together.iou[1].item() == 0
    assert len(together.take([1]).prompts) == 0
    picked = together.take([2, 0])
    assert picked.prompts.image.tolist() == [0, 1, 1]
    assert torch.equal(picked.prompts.boxes, together.prompts.boxes[[2, 0, 1]])


def test_a_batch_without_any_lesion_is_empty(build) -> None:
    net = with_maps(build("APM_dense"), blob(), blob())
    with torch.no_grad():
        prediction = net(images(2, net))
    assert (prediction.mask_logits < 0).all()
    assert len(prediction.prompts) == 0


def test_fused_masks_are_the_weighted_mean_of_sams_and_the_maps_logits(build) -> None:
    maps = blob((10, 10, 39, 39))
    net = with_maps(build("APM_dense"), maps, fuse=0.25)
    image = images(1, net)
    with torch.no_grad():
        automatic = net(image)
        alone = net(image, automatic.prompts)
        again = net(image, automatic.prompts, fuse=True)
        separate = net(image, fuse=False)
    resized = torch.nn.functional.interpolate(
        automatic.lesion_logits, size=alone.mask_logits.shape[-2:], mode="bilinear"
    )
    torch.testing.assert_close(automatic.mask_logits, 0.75 * alone.mask_logits + 0.25 * resized)
    assert torch.equal(again.mask_logits, automatic.mask_logits)
    assert torch.equal(separate.mask_logits, alone.mask_logits)


def test_the_output_is_sams_single_mask_or_a_multimask(build) -> None:
    net = with_maps(build("APM_dense"), blob((10, 10, 39, 39)), fuse=0.0)
    image = images(1, net)
    with torch.no_grad():
        encoded = net.encode(image)
        single = net(encoded)
        masks, _ = net.sam.decode(encoded, single.prompts, channels=(0, 1, 2, 3))
        net.apm.lesions = dataclasses.replace(net.apm.lesions, output="multimask")
        first, second = net(encoded), net(encoded, mask_index=1)
    for prediction, channel in ((single, 0), (first, 1), (second, 2)):
        torch.testing.assert_close(prediction.mask_logits[0, 0], masks[0, channel], atol=1e-6, rtol=1e-5)


def features_and_head(build) -> tuple[Encoded, DensePrompter]:
    net = build("APM_dense", seed=3).eval()
    with torch.no_grad():
        return net.encode(images(2, net)), net.apm


def mirrored(encoded: Encoded, *axes: int) -> Encoded:
    return encoded.map(lambda x: x.flip(axes))


@torch.no_grad()
def test_the_map_is_the_mean_over_mirror_images_except_in_training(build) -> None:
    encoded, prompter = features_and_head(build)
    every = [(), (3,), (2,), (2, 3)]
    one_by_one = [prompter.head(m.embedding, m.taps).flip(axes) for axes in every for m in [mirrored(encoded, *axes)]]
    found = prompter.lesion_logits(encoded)
    torch.testing.assert_close(found, torch.stack(one_by_one).mean(0), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, one_by_one[0], atol=1e-3)
    prompter.head.dropout = 0
    assert torch.equal(prompter.train().lesion_logits(encoded), one_by_one[0])
    prompter.eval().lesions = LesionSettings(flips=False)
    assert torch.equal(prompter.lesion_logits(encoded), one_by_one[0])


@pytest.mark.parametrize("axes", [(3,), (2,), (2, 3)])
@torch.no_grad()
def test_mirrored_features_give_the_mirrored_map(axes, build) -> None:
    encoded, prompter = features_and_head(build)
    found = prompter.lesion_logits(mirrored(encoded, *axes)).flip(axes)
    assert torch.equal(found, prompter.lesion_logits(encoded))


@torch.no_grad()
def test_points_beside_a_box_are_suggested_but_not_decoded(build) -> None:
    maps = blob((4, 4, 19, 19), (34, 34, 59, 59))
    net = with_maps(build("APM_dense"), maps, blob())
    image = images(2, net)
    found = net(image)
    assert found.prompts.points is None
    points = with_maps(build("APM_dense"), maps, blob(), prompts="points")(image).prompts
    assert points.suggested is None
    assert torch.equal(found.prompts.suggested.xy, points.points.xy)
    assert found.prompts.suggested.label.tolist() == points.points.label.tolist() == [[1, 1, 0, 0]] * 2
    bare = with_maps(build("APM_dense"), maps, blob())
    boxes = dataclasses.replace(found.prompts, suggested=None)
    assert torch.equal(bare(image, boxes, fuse=True).mask_logits, found.mask_logits)
    assert found.take([1, 0]).prompts.suggested.xy.shape == (2, 4, 2)


@pytest.mark.parametrize("name", DENSE)
def test_training_the_map_decodes_nothing_and_reaches_every_weight_of_the_head(name, build, monkeypatch) -> None:
    net = build(name).train()
    monkeypatch.setattr(net.sam, "decode", None)
    prediction = net(images(2, net), decode=False)
    assert torch.equal(prediction.mask_logits, prediction.lesion_logits)
    target = (torch.arange(prediction.mask_logits.shape[-1]) // 2 % 2).float().expand_as(prediction.mask_logits)
    torch.nn.functional.binary_cross_entropy_with_logits(prediction.mask_logits, target).backward()
    silent = [name for name, p in net.apm.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_taps_reach_the_prompter_at_half_the_resolution(build) -> None:
    net = build("APM_dense")
    pixels = images(2, net)
    full, pooled = net.sam.encode(pixels), net.encode(pixels)
    assert torch.equal(pooled.embedding, full.embedding)
    means = [tap.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-1, -3)) for tap in full.taps]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(pooled.taps, means, strict=True))


@pytest.mark.parametrize("side", [4, 5, 7, 16])
def test_the_map_has_twice_the_side_of_the_embedding(side) -> None:
    head = DenseHead(embedding_channels=16, tap_channels=(8, 8), widths=(8, 8, 8, 8)).eval()
    with torch.no_grad():
        logits = head(torch.rand(2, 16, side, side), [torch.rand(2, 8, -(-side // 2), -(-side // 2))] * 2)
    assert logits.shape == (2, 1, 2 * side, 2 * side)


def test_the_map_ignores_the_mean_and_the_scale_of_each_channel() -> None:
    torch.manual_seed(0)
    head = DenseHead(embedding_channels=16, tap_channels=(8, 8), widths=(8, 8, 8, 8)).eval()
    embedding, taps = torch.randn(2, 16, 8, 8), [torch.randn(2, 8, 4, 4) for _ in range(2)]

    def change(x: Tensor) -> Tensor:
        scale, shift = torch.rand(2, *x.shape[:2], 1, 1).unbind()
        return x * (0.5 + scale) + shift

    with torch.no_grad():
        logits = head(embedding, taps)
        other_look = head(change(embedding), [change(tap) for tap in taps])
        other_image = head(embedding.roll(1, -1), taps)
    assert torch.allclose(logits, other_look, atol=1e-3)
    assert not torch.allclose(logits, other_image, atol=1e-2)


def test_nets_without_a_map_say_so(build, user_error) -> None:
    net = build("APM_resnet")
    with user_error("no-lesion-map"):
        net.lesion_map(Encoded(torch.zeros(1, 256, 4, 4)))
    assert net.lesions is None


@pytest.mark.parametrize("sam", ["lite_medsam", "vit_b"])
def test_the_prompter_has_at_most_two_million_weights(sam) -> None:
    prompter, _ = build_parts(parse_net_name("APM_dense")[0], get_backbone(sam), num_points=16)
    assert sum(p.numel() for p in prompter.parameters()) <= 2_000_000
