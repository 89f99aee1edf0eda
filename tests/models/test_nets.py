"""Tests that run for every net of the table: shapes, gradients, an unchanged SAM, prompts."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from promise.models.cpu import optimize_for_cpu
from promise.models.registry import NETS
from promise.models.sam.frozen import FREEZE
from promise.runtime.settings import FREEZE_ALIASES, freeze_code
from promise.types import Encoded, Points, Prompts

LITE_NETS = ("APM_IPS_resnet", "APM_cross", "IPS_GT")  # each part once: a pass takes half a second per image
SLOW = {("APM_cross", "lite_medsam")}  # 10 seconds
POINT_NETS = [name for name, spec in NETS.items() if not spec.trains_map]  # the others: prompters/test_dense.py
CASES = [*((name, "tiny_vit") for name in POINT_NETS), *((name, "lite_medsam") for name in LITE_NETS)]
PARAMETERS = [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
AUTO = [name for name in POINT_NETS if NETS[name].prompter]
ORACLE = [name for name, spec in NETS.items() if not spec.prompter]


@pytest.fixture(params=PARAMETERS, ids="-".join)
def case(request: pytest.FixtureRequest, build):
    """A fresh net and its images."""
    name, sam = request.param
    if sam == "lite_medsam":
        request.getfixturevalue("lite")
    net = build(name, sam=sam, num_points=4)
    if sam == "lite_medsam":
        net = optimize_for_cpu(net)  # as the commands do
    # The cross head's second map has 250 × 250 × 320 values per image on LiteMedSAM: one image is enough.
    return net, images(1 if (name, sam) == ("APM_cross", "lite_medsam") else 2, net)


def images(count: int, net) -> Tensor:
    side = net.sam.backbone.image_size
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7))


def some_points(batch: int, net, count: int = 4) -> Prompts | None:
    """Random points for a net without a prompter, ``None`` for a net with one."""
    if not net.needs_prompts:
        return None
    generator = torch.Generator().manual_seed(8)
    xy = torch.rand(batch, count, 2, generator=generator) * (net.sam.backbone.image_size - 1)
    return Prompts(Points(xy, torch.randint(0, 2, (batch, count), generator=generator)))


def prompts_of(prompts: Prompts, i: int) -> Prompts:
    """The prompts of image ``i`` of the batch."""
    one, points = slice(i, i + 1), prompts.points
    return Prompts(
        None if points is None else Points(points.xy[one], points.label[one]),
        None if prompts.boxes is None else prompts.boxes[one],
        None if prompts.masks is None else prompts.masks[one],
    )


def warm_up(net, image: Tensor) -> None:
    """Update BatchNorm's statistics by a forward pass, so that evaluation mode is not the identity."""
    net.train()
    with torch.no_grad():
        net(image, some_points(len(image), net))


def checkerboard_loss(logits: Tensor) -> Tensor:
    target = (torch.arange(logits.shape[-1]) // 4 % 2).to(logits).expand_as(logits)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


def training_step(net, image: Tensor) -> None:
    """One step of Adam in training mode."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    net.train()
    checkerboard_loss(net(image, some_points(len(image), net)).mask_logits).backward()
    optimizer.step()


def test_shapes_and_gradients_are_right_and_sam_is_unchanged(case) -> None:
    net, image = case
    backbone, batch = net.sam.backbone, len(image)
    before = net.sam.weights_sha256()
    own = {name: value.clone() for name, value in net.learned_state().items()}
    net.train()
    prediction = net(image, some_points(batch, net))
    side = 4 * backbone.embedding_side
    assert prediction.mask_logits.shape == (batch, 1, side, side)
    assert prediction.mask_logits.dtype == torch.float32
    assert prediction.iou.shape == (batch, 1)
    assert prediction.points.xy.shape == (batch, 4, 2)
    assert prediction.boxes is None
    assert (prediction.points.xy >= 0).all()
    assert (prediction.points.xy <= backbone.image_size).all()

    learned = {name for name, _ in net.named_parameters() if not name.startswith("sam.")}
    assert {name for name, p in net.named_parameters() if p.requires_grad} == learned
    if learned:
        checkerboard_loss(prediction.mask_logits).backward()
        reached = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert reached == learned
        torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2).step()
        if backbone.name == "tiny_vit":
            training_step(net, image)
        after = net.learned_state()
        assert [name for name in learned if torch.equal(after[name], own[name])] == []
    assert net.sam.weights_sha256() == before
    assert not any(module.training for module in net.sam.modules())


@pytest.mark.parametrize("name", POINT_NETS)
def test_a_batch_equals_its_images_one_by_one(name, build) -> None:
    net = build(name, num_points=4)
    image = images(3, net)
    warm_up(net, image)
    net.eval()
    prompts = some_points(3, net)
    with torch.no_grad():
        together = net(image, prompts)
        singles = [net(image[i : i + 1], prompts and prompts_of(prompts, i)) for i in range(3)]
    for field in ("mask_logits", "iou"):
        torch.testing.assert_close(
            getattr(together, field), torch.cat([getattr(s, field) for s in singles]), atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(together.points.xy, torch.cat([s.points.xy for s in singles]), atol=1e-3, rtol=0)
    spread = together.mask_logits - together.mask_logits.mean(0)
    assert spread.abs().max() > 1e-3  # the images differ: the comparison is not trivial


@pytest.mark.parametrize("name", AUTO)
def test_the_predicted_points_as_prompts_yield_the_same_masks(name, build) -> None:
    net = build(name, num_points=4)
    image = images(2, net)
    warm_up(net, image)
    net.eval()
    with torch.no_grad():
        automatic = net(image)
        from_prompts = net(image, automatic.prompts)
        from_points = net(image, points=automatic.points)
        moved = net(image, points=Points(automatic.points.xy.flip(1), automatic.points.label))
    assert torch.equal(automatic.mask_logits, from_prompts.mask_logits)
    assert torch.equal(automatic.mask_logits, from_points.mask_logits)
    assert from_prompts.prompts is automatic.prompts
    assert not torch.allclose(automatic.mask_logits, moved.mask_logits, atol=1e-4)


@pytest.mark.parametrize("name", AUTO)
def test_points_depend_on_the_image_and_have_sub_pixel_precision(name, build) -> None:
    net = build(name, num_points=4).eval()
    net16 = build(name, num_points=4, precision="bf16").eval()
    image = images(2, net)
    with torch.no_grad():
        full, half = net(image), net16(image)
    assert not torch.allclose(full.points.xy[0], full.points.xy[1], atol=1e-4)
    assert half.points.xy.dtype == torch.float32
    assert (half.points.xy != half.points.xy.bfloat16().float()).float().mean() > 0.9
    torch.testing.assert_close(half.points.xy, full.points.xy, atol=1.0, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_bfloat16_is_close_to_float32(name, build) -> None:
    net, net16 = build(name, num_points=4).eval(), build(name, num_points=4, precision="bf16").eval()
    for one in (net, net16):
        if one.lesions is not None:  # random weights: lesions of any strength
            one.apm.lesions = dataclasses.replace(one.lesions, min_score=0.0, min_probability=0.0)
    image = images(2, net)
    prompts = some_points(2, net)
    with torch.no_grad():
        prompts = prompts or net(image).prompts
        full, half = net(image, prompts), net16(image, prompts)
    assert half.mask_logits.dtype == half.iou.dtype == torch.float32
    difference = (half.mask_logits - full.mask_logits).abs()
    assert 0 < difference.max() < 0.1 * full.mask_logits.std() + 0.02 * full.mask_logits.abs().max()
    torch.testing.assert_close(half.iou, full.iou, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name", ORACLE)
def test_a_net_without_a_prompter_requires_prompts(name, build, user_error) -> None:
    net = build(name)
    assert net.needs_prompts
    with user_error("no-prompter"):
        net(images(1, net))


@pytest.mark.parametrize("name", NETS)
def test_every_net_accepts_boxes_as_the_only_prompts(name, build) -> None:
    net = build(name, num_points=4).eval()
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 30.0, 20.0]])
    with torch.no_grad():
        encoded = net.encode(images(2, net))
        prediction = net.decode(encoded, Prompts(boxes=boxes))
        moved = net.decode(encoded, Prompts(boxes=boxes + 8))
    assert prediction.points is None
    assert torch.equal(prediction.boxes, boxes)
    assert not torch.allclose(prediction.mask_logits, moved.mask_logits, atol=1e-4)


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("count", [1, 2, 16])
def test_one_point_or_an_even_number_of_points_is_accepted(name, count, build) -> None:
    net = build(name, num_points=count).eval()
    with torch.no_grad():
        points = net(images(2, net)).points
    assert points.xy.shape == (2, count, 2)
    half = max(1, count // 2)
    assert points.label.tolist() == [[1] * half + [0] * (count - half)] * 2


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [0, -2, 3, 15])
def test_an_odd_number_of_points_is_an_error(name, count, build, user_error) -> None:
    with user_error("number-of-points"):
        build(name, num_points=count)


def test_point_labels_can_be_chosen(build) -> None:
    net = build("APM_cross", num_points=4, point_labels=(0, 1, 1, 1)).eval()
    with torch.no_grad():
        assert net(images(2, net)).points.label.tolist() == [[0, 1, 1, 1]] * 2


@pytest.mark.parametrize("labels", [(1, 0, 1), (1, 0, 1, 0, 1), (1, 0, 2, 0), (1, 0, -1, 0)])
def test_invalid_point_labels_are_an_error(labels, build, user_error) -> None:
    with user_error("point-labels"):
        build("APM_cross", num_points=4, point_labels=labels)


def test_the_token_shift_changes_the_mask_and_not_the_points(build) -> None:
    with_shift, without = build("APM_IPS_cross", num_points=4).eval(), build("APM_cross", num_points=4).eval()
    without.apm.load_state_dict(with_shift.apm.state_dict())
    image = images(2, without)
    with torch.no_grad():
        a, b = with_shift(image), without(image)
        with_shift.ips.lin2.weight.zero_()
        with_shift.ips.lin2.bias.zero_()
        unshifted = with_shift(image)
    assert torch.equal(a.points.xy, b.points.xy)
    assert not torch.allclose(a.mask_logits, b.mask_logits, atol=1e-4)
    torch.testing.assert_close(unshifted.mask_logits, b.mask_logits, atol=1e-6, rtol=0)


def test_the_same_seed_yields_the_same_initial_weights(build) -> None:
    first, again, other = (build("APM_IPS_cross", num_points=4, seed=s).learned_state() for s in (5, 5, 6))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["ips.lin1.weight"], other["ips.lin1.weight"])
    state = torch.get_rng_state()
    build("APM_IPS_cross", num_points=4, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


# --- freeze switches ------------------------------------------------------------------------------

TRAINED_PARTS = {
    "FZ0": (),
    "FZ1": ("prompt_encoder",),
    "FZ2": ("mask_decoder",),
    "FZ3": ("prompt_encoder", "mask_decoder"),
    "FZ4": ("image_encoder", "prompt_encoder", "mask_decoder"),
}


def test_the_switches_are_those_of_the_reference_implementation() -> None:
    assert FREEZE.keys() == TRAINED_PARTS.keys()


@pytest.mark.parametrize("freeze", TRAINED_PARTS)
def test_a_freeze_switch_trains_exactly_its_parts(freeze, build) -> None:
    net = build("APM_IPS_cross", num_points=4, freeze=freeze)
    image = images(2, net)
    assert sorted(net.sam.trained_parts) == sorted(TRAINED_PARTS[freeze])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    encoded = net.encode(image)
    assert encoded.embedding.requires_grad == (freeze == "FZ4")
    assert [tap.requires_grad for tap in encoded.taps] == [freeze == "FZ4"] * 3
    training_step(net, image)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    parts = {k.split(".")[1] for k in changed if k.startswith("sam.")}
    assert parts == set(TRAINED_PARTS[freeze])
    assert not net.sam.training
    saved = {k.split(".")[1] for k in net.learned_state() if k.startswith("sam.")}
    assert saved == set(TRAINED_PARTS[freeze])


@pytest.mark.parametrize(("name", "code"), FREEZE_ALIASES.items())
def test_a_switch_has_a_readable_name_and_the_code_is_kept(name, code, build) -> None:
    assert freeze_code(name) == freeze_code(code) == code
    named, coded = build("IPS_GT", freeze=name).sam, build("IPS_GT", freeze=code).sam
    assert named.freeze == coded.freeze == code
    assert named.trained_parts == coded.trained_parts


def test_the_readable_names_are_those_of_the_frozen_parts() -> None:
    expected = {
        "all": {"image_encoder", "prompt_encoder", "mask_decoder"},
        "encoder+decoder": {"image_encoder", "mask_decoder"},
        "encoders": {"image_encoder", "prompt_encoder"},
        "encoder": {"image_encoder"},
        "none": set(),
    }
    assert {name: set(FREEZE[code]) for name, code in FREEZE_ALIASES.items()} == expected
    assert sorted(FREEZE_ALIASES.values()) == sorted(FREEZE)


@pytest.mark.parametrize("name", ["FZ5", "everything", ""])
def test_an_unknown_freeze_switch_lists_the_readable_names(name, build, user_error) -> None:
    with user_error("unknown-freeze-switch") as caught:
        build("IPS_GT", freeze=name)
    assert all(known in str(caught.value) for known in FREEZE_ALIASES)


# --- FrozenSam against the package's own modules --------------------------------------------------


@pytest.mark.parametrize("sam", ["tiny_vit", "lite_medsam"])
def test_encode_equals_the_packages_encoder(sam, build, request) -> None:
    if sam == "lite_medsam":
        request.getfixturevalue("lite")
    net = optimize_for_cpu(build("SAM", sam=sam))
    count = 2 if sam == "tiny_vit" else 1
    image = images(count, net)
    with torch.no_grad():
        ours = net.sam.encode(image)
        theirs = net.sam.image_encoder(image)
        without_taps = net.sam.encode(image, taps=False)
    backbone = net.sam.backbone
    torch.testing.assert_close(ours.embedding, theirs, atol=1e-4, rtol=1e-5)  # the same sums in another order
    assert torch.equal(without_taps.embedding, ours.embedding)
    assert without_taps.taps == ()
    side = backbone.embedding_side
    assert [tuple(t.shape) for t in ours.taps] == [(count, c, side, side) for c in backbone.tap_channels]


def test_taps_are_the_outputs_of_the_tapped_blocks(build) -> None:
    net = optimize_for_cpu(build("SAM"))
    seen: dict[int, Tensor] = {}
    for number in (2, 4, 6):
        net.sam.image_encoder.blocks[number - 1].register_forward_hook(
            lambda _m, _i, out, number=number: seen.update({number: out})
        )
    with torch.no_grad():
        taps = net.sam.encode(images(1, net)).taps
        assert seen == {}  # the fused encoder does not run the package's blocks
        net.sam.image_encoder(images(1, net))
    for number, tap in zip((2, 4, 6), taps, strict=True):
        torch.testing.assert_close(tap, seen[number].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_images_of_another_size_are_refused(build) -> None:
    net = build("SAM")
    for shape in ((1, 3, 32, 64), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(ValueError, match=r"tiny_vit .*\(B, 3, 64, 64\)"):
            net.sam.encode(torch.zeros(shape))


KINDS = [kinds for n in (1, 2, 3) for kinds in itertools.combinations(("points", "boxes", "masks"), n)]


@pytest.mark.parametrize("kinds", [*KINDS, ("points", "padding")], ids="+".join)
@pytest.mark.parametrize("sam", ["tiny_vit", "lite_medsam"])
def test_decode_equals_the_packages_decoder_image_by_image(kinds, sam, build, request) -> None:
    if sam == "lite_medsam":
        request.getfixturevalue("lite")
        if kinds != ("points", "boxes"):
            pytest.skip("the same code as on tiny_vit; one case is enough")
    frozen = build("SAM", sam=sam).sam
    backbone = frozen.backbone
    generator = torch.Generator().manual_seed(9)
    size, side = backbone.image_size, backbone.embedding_side
    encoded = Encoded(torch.randn(3, backbone.embedding_channels, side, side, generator=generator), ())
    corner = torch.rand(3, 2, generator=generator) * size / 2
    label = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    if "padding" in kinds:
        label[0, 3:] = -1
    drawn = {
        "points": Points(torch.rand(3, 5, 2, generator=generator) * size, label),
        "boxes": torch.cat((corner, corner + size / 3), dim=1),
        "masks": torch.randn(3, 1, 4 * side, 4 * side, generator=generator),
    }
    prompts = Prompts(**{kind: value for kind, value in drawn.items() if kind in kinds})
    with torch.no_grad():
        logits, iou = frozen.decode(encoded, prompts, channels=(0, 1, 2, 3))
        first, first_iou = frozen.decode(encoded, prompts)
    for i in range(3):
        masks, quality = _decode_by_package(frozen, encoded.embedding[i : i + 1], prompts_of(prompts, i))
        torch.testing.assert_close(logits[i], masks, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(iou[i], quality, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(first, logits[:, 1:2], atol=1e-5, rtol=1e-5)  # the first multimask mask
    torch.testing.assert_close(first_iou, iou[:, 1:2], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def _decode_by_package(frozen, embedding, prompts) -> tuple[Tensor, Tensor]:
    points = prompts.points and (prompts.points.xy, prompts.points.label)
    sparse, dense = frozen.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
    common = {
        "image_embeddings": embedding,
        "image_pe": frozen.prompt_encoder.get_dense_pe(),
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
    }
    single, several = (frozen.mask_decoder(**common, multimask_output=many) for many in (False, True))
    return torch.cat((single[0], several[0]), dim=1)[0], torch.cat((single[1], several[1]), dim=1)[0]


def test_the_token_shift_is_added_to_the_mask_tokens(build) -> None:
    net = build("SAM")
    image = images(2, net)
    prompts = some_points(2, net)
    shift = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = net.encode(image)
        ours, _ = net.sam.decode(encoded, prompts, token_shift=shift.expand(2, -1, -1))
        net.sam.mask_decoder.mask_tokens.weight.add_(shift)
        theirs, _ = net.sam.decode(encoded, prompts)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("sam", "freeze"),
    [
        *(("tiny_vit", freeze) for freeze in ("FZ0", "FZ3", "FZ4")),
        ("lite_medsam", "FZ0"),
        pytest.param("lite_medsam", "FZ4", marks=pytest.mark.slow),  # 20 seconds
    ],
)
def test_gradient_checkpointing_yields_the_same_gradients_with_less_memory(freeze, sam, build, request) -> None:
    if sam == "lite_medsam":
        request.getfixturevalue("lite")
    net = build("APM_IPS_resnet", sam=sam, freeze=freeze)
    if sam == "lite_medsam":
        net = optimize_for_cpu(net)  # as the commands do
    image = images(1 if sam == "lite_medsam" else 2, net)  # one image of real size takes seconds

    def gradients() -> tuple[list[Tensor], int]:
        kept: dict[int, int] = {}
        net.zero_grad()

        def keep(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            prediction = net(image)
        for parameter in net.parameters():  # weights are always in memory
            kept.pop(parameter.untyped_storage().data_ptr(), None)
        prediction.mask_logits.square().mean().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None], sum(kept.values())

    plain, plain_bytes = gradients()
    net.sam.gradient_checkpointing = True
    recomputed, recomputed_bytes = gradients()
    assert len(plain) == len(recomputed) > 0
    for ours, theirs in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)
    assert recomputed_bytes < plain_bytes * (0.5 if freeze == "FZ4" else 0.95)
