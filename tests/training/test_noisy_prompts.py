"""Noisy prompts: how they are drawn, what the net adds to them, and that mixed prompts are decoded as alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promise import checkpoint
from promise.models.promise import Promise
from promise.models.prompters.lesions import largest_error
from promise.prompts.sampling import oracle_boxes
from promise.training.losses import resize_target
from promise.training.noisy_prompts import MAX_POINTS, SHARES, NoisyDraw, NoisyPromptNet, draw_noisy
from promise.types import Batch, Points, Prompts

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")

SIDE = 64


def batch_of(count: int, first: int = 0) -> Batch:
    """Images of noise, with a rectangle each."""
    generator = torch.Generator().manual_seed(first)
    image, mask = torch.randn(count, 3, SIDE, SIDE, generator=generator), torch.zeros(count, 1, SIDE, SIDE)
    mask[:, :, 20:44, 12:50] = 1
    index = torch.arange(first, first + count)
    return Batch(image, mask, tuple(f"row{i}" for i in index.tolist()), index)


@pytest.fixture(scope="module")
def net(save_lesion_net: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Promise:
    """A net that finds some lesions, in evaluation mode: without dropout."""
    loaded: Promise = checkpoint.load(save_lesion_net(tmp_path_factory.mktemp("net") / "net.safetensors"))[0]
    return loaded


def equal(ours: Prompts, theirs: Prompts) -> bool:
    """Whether two prompts of points or boxes are the same."""

    def values(one: Prompts) -> list[Any]:
        points = [] if one.points is None else [one.points.xy.tolist(), one.points.label.tolist()]
        return [*points, None if one.boxes is None else one.boxes.tolist()]

    return values(ours) == values(theirs)


def test_kinds_are_drawn_in_their_shares() -> None:
    draw = draw_noisy(batch_of(2000), seed=3, epoch=1)
    counts = Counter(draw.kinds)
    assert {kind: counts[kind] / 2000 for kind in counts} == pytest.approx(SHARES, abs=0.04)
    structures = Counter(
        (kind, 0 if one.points is None else one.points.xy.shape[1])
        for kind, one in zip(draw.kinds, draw.prompts, strict=True)
    )
    boxes = {"predicted": 0.4, "box": 0.2, "click": 0.1}  # without points
    expected = {(kind, 0): share for kind, share in boxes.items()}
    for points in range(1, MAX_POINTS + 1):
        expected |= {("points", points): 0.2 / MAX_POINTS, ("click", points): 0.1 / MAX_POINTS}
    assert {key: counts / 2000 for key, counts in structures.items()} == pytest.approx(expected, abs=0.03)
    for one in draw.prompts:
        if one.points is not None:
            x, y = one.points.xy.unbind(-1)
            assert ((x >= 12) & (x < 50) & (y >= 20) & (y < 44)).all()
            assert (one.points.label == 1).all()


def test_prompts_of_an_image_depend_on_its_name_the_epoch_and_the_seed_only() -> None:
    whole = batch_of(8)
    draw = draw_noisy(whole, seed=3, epoch=1)
    alone = draw_noisy(whole.take([5]), seed=3, epoch=1)
    assert alone.kinds[0] == draw.kinds[5]
    assert equal(alone.prompts[0], draw.prompts[5])
    for other in (draw_noisy(whole, seed=3, epoch=2), draw_noisy(whole, seed=4, epoch=1)):
        assert not all(equal(a, b) for a, b in zip(draw.prompts, other.prompts, strict=True))


def test_an_image_without_a_lesion_has_points_in_the_background() -> None:
    empty = batch_of(20)
    draw = draw_noisy(replace(empty, mask=torch.zeros_like(empty.mask)), seed=3, epoch=1)
    for one in draw.prompts:
        assert one.points is not None
        assert (one.points.label == 0).all()


def points(*xy: tuple[float, float]) -> Prompts:
    return Prompts(Points(torch.tensor([xy]), torch.ones(1, len(xy), dtype=torch.int64)))


@torch.no_grad()
def test_mixed_prompts_are_decoded_as_each_alone_without_the_map(net: Promise) -> None:
    batch = batch_of(4)
    box = Prompts(boxes=torch.tensor([[10.0, 20, 50, 40]]))
    given = (box, points((30.0, 30.0)), box, points((20.0, 30.0), (40.0, 25.0)))
    wrapped = NoisyPromptNet(net)
    prediction = wrapped(batch.image, NoisyDraw(given, ("box", "points", "box", "points"), batch.mask))
    for place, one in enumerate(given):
        alone = net(batch.take([place]).image, one)
        torch.testing.assert_close(prediction.mask_logits[[place]], alone.mask_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prediction.iou[[place]], alone.iou, rtol=1e-4, atol=1e-4)
    assert not prediction.fused
    own = wrapped(batch.image)
    assert torch.equal(own.mask_logits, net(batch.image).mask_logits)


@torch.no_grad()
def test_predicted_boxes_are_those_of_the_net_or_the_drawn_ones(net: Promise) -> None:
    batch = batch_of(6)
    encoded = net.encode(batch.image)
    found = net.prompt(encoded).prompts
    assert found.image is not None
    counts = torch.bincount(found.image, minlength=6)
    assert counts.max() > 1  # several lesions
    assert counts.min() == 0  # and none
    drawn = Prompts(boxes=torch.tensor([[10.0, 20, 50, 40]]))
    logits = NoisyPromptNet(net)(encoded, NoisyDraw((drawn,) * 6, ("predicted",) * 6, batch.mask)).mask_logits
    own, other = net(encoded, fuse=False).mask_logits, net(encoded, Prompts(boxes=drawn.boxes.expand(6, -1)))
    expected = torch.where((counts > 0)[:, None, None, None], own, other.mask_logits)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_predicted_boxes_have_the_noise_of_the_dropout(net: Promise, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, maps = NoisyPromptNet(net), []
    place = type(net.apm).place_prompts
    monkeypatch.setattr(type(net.apm), "place_prompts", lambda self, logits: maps.append(logits) or place(self, logits))
    batch = batch_of(2)
    draw = NoisyDraw((Prompts(boxes=oracle_boxes(batch.mask[:1])),) * 2, ("predicted",) * 2, batch.mask)
    wrapped.train()
    wrapped(batch.image, draw)
    wrapped(batch.image, draw)
    wrapped.eval()
    wrapped(batch.image, draw)
    first, second, plain = maps
    assert not torch.equal(first, second)
    torch.testing.assert_close(plain, net.lesion_map(net.encode(batch.image)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("before", [Prompts(boxes=torch.tensor([[10.0, 20, 50, 40]])), points((30.0, 30.0))])
def test_a_click_is_placed_in_the_largest_error(before: Prompts, net: Promise) -> None:
    batch = batch_of(1)
    encoded = net.encode(batch.image)
    logits = net(encoded, before).mask_logits
    side = logits.shape[-1]
    target = resize_target(batch.mask, (side, side))[0, 0] > 0.5
    error = largest_error((logits[0, 0] > 0).numpy(), target.numpy())
    assert error is not None
    xy = torch.tensor([[[(error.x + 0.5) * SIDE / side - 0.5, (error.y + 0.5) * SIDE / side - 0.5]]])
    label = torch.tensor([[int(error.missed)]])
    if before.points is not None:
        xy, label = torch.cat((before.points.xy, xy), 1), torch.cat((before.points.label, label), 1)
    expected = net(encoded, Prompts(Points(xy, label), before.boxes)).mask_logits
    assert (expected - logits).abs().max() > 1e-3
    clicked = NoisyPromptNet(net)(encoded, NoisyDraw((before,), ("click",), batch.mask)).mask_logits
    torch.testing.assert_close(clicked, expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_token_shift_inside_an_outer_autocast(net: Promise) -> None:
    """The weights that the decoding before a click casts are cached by autocast, and have no gradients."""
    wrapped, batch = NoisyPromptNet(replace_precision(net)), batch_of(1)
    draw = NoisyDraw((points((30.0, 30.0)),), ("click",), batch.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: Tensor = wrapped(batch.image, draw).mask_logits
    assert net.ips is not None
    gradients = torch.autograd.grad(logits.sum(), list(net.ips.parameters()), allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def replace_precision(net: Promise) -> Promise:
    """The same parts in another precision."""
    return Promise(net.sam, apm=net.apm, ips=net.ips, precision="bf16")
