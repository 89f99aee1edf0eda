from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from promise.evaluation.metrics import evaluate_pair
from promise.models.cpu import parts, vit
from promise.models.cpu.tiny_vit import FusedTinyViT
from promise.models.cpu.vit import FusedViT
from promise.models.sam.adapter import Maps
from promise.models.sam.backbones import build_sam, encode_tiny_vit, encode_vit, get_backbone
from promise.models.sam.frozen import FrozenSam
from promise.runtime.device import resolve_precision
from promise.types import Prompts

TAPS = (2, 3, 4)


@pytest.fixture(scope="module")
def lite_encoder(lite: None) -> nn.Module:
    encoder: nn.Module = build_sam(get_backbone("lite_medsam")).image_encoder
    return encoder.requires_grad_(False)


def fused_sam(freeze: str = "all") -> FrozenSam:
    backbone = get_backbone("lite_medsam")
    sam = FrozenSam(build_sam(backbone), backbone, freeze=freeze)
    sam.fuse = FusedTinyViT
    return sam


def image(seed: int = 0, count: int = 1) -> Tensor:
    """Smooth images with values in [0, 1] that saturate in places."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 16, 16, generator=generator)
    return nn.functional.interpolate(coarse, size=256, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def packages_maps(lite_encoder) -> Maps:
    """Embedding and taps of ``image(count=2)`` from the package's own encoder."""
    return encode_tiny_vit(lite_encoder, image(count=2), TAPS)


@pytest.mark.parametrize("elements", [2**16, 2**30], ids=["one row", "whole"])  # strips: all other tests
def test_the_fused_tiny_vit_equals_the_packages_encoder_in_full_precision(
    elements, lite_encoder, packages_maps: Maps, monkeypatch
) -> None:
    monkeypatch.setattr(parts, "STRIP_ELEMENTS", elements)
    embedding, taps = FusedTinyViT(lite_encoder, torch.float32)(image(count=2), TAPS)
    theirs, their_taps = packages_maps
    for ours, expected in zip((embedding, *taps), (theirs, *their_taps), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("pairs", [1, 40, 2**30], ids=["one query", "blocks", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fused_vit_equals_the_packages_encoder(dtype, pairs, build, monkeypatch) -> None:
    """With windows that need padding, relative positions other than zero, and blocks with global attention."""
    monkeypatch.setattr(vit, "BLOCK_PAIRS", pairs)
    monkeypatch.setattr(vit, "MASK_PAIRS", pairs)
    encoder = build("SAM").sam.image_encoder
    assert encoder.blocks[0].window_size == 3
    assert encoder.blocks[0].attn.rel_pos_h.abs().max() > 0.05
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedding, taps = FusedViT(encoder, dtype)(pixels, (2, 3, 6))
        theirs, their_taps = encode_vit(encoder, pixels, (2, 3, 6))
    for ours, expected in zip((embedding, *taps), (theirs, *their_taps), strict=True):
        assert ours.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
        else:
            assert (ours.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_a_fused_vit_without_relative_positions_or_bias_equals_the_packages_encoder() -> None:
    from segment_anything.modeling import ImageEncoderViT

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, out_chans=8, window_size=3,
        qkv_bias=False, use_abs_pos=False, use_rel_pos=False, global_attn_indexes=(1,),
    ).eval()  # fmt: skip
    pixels = torch.randn(2, 3, 32, 32)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            ours, _ = FusedViT(encoder, dtype)(pixels, ())
            theirs = encoder(pixels)
        assert (ours.float() - theirs).abs().mean() < (1e-6 if dtype == torch.float32 else 0.02)


def test_only_requested_taps_are_returned(lite_encoder) -> None:
    embedding, taps = FusedTinyViT(lite_encoder, torch.float32)(image(), (3,))
    same_embedding, all_taps = FusedTinyViT(lite_encoder, torch.float32)(image(), TAPS)
    assert len(taps) == 1
    assert torch.equal(taps[0], all_taps[1])
    assert torch.equal(embedding, same_embedding)


def test_the_fused_encoder_is_rebuilt_when_the_weights_change(lite) -> None:
    sam = fused_sam()
    pixels = image()
    before = sam.encode(pixels)
    assert sam.encode(pixels).embedding.equal(before.embedding)
    with torch.no_grad():
        sam.image_encoder.neck[0].weight.mul_(1.5)
        sam.image_encoder.layers[0].blocks[0].conv1.bn.running_mean.add_(0.1)
    after, (expected, _) = sam.encode(pixels), encode_tiny_vit(sam.image_encoder, pixels, TAPS)
    torch.testing.assert_close(after.embedding, expected.detach(), atol=1e-4, rtol=1e-5)
    assert (after.taps[0] - before.taps[0]).abs().max() > 1e-3


def test_an_encoder_fused_in_inference_mode_is_reused_outside_of_it(lite) -> None:
    sam = fused_sam()
    pixels = image()
    with torch.inference_mode():
        sam.eval()  # TinyViT recomputes its position biases here
        inside = sam.encode(pixels).embedding
    fused = sam._fused[torch.float32][1]
    sam.train()
    outside = sam.encode(pixels).embedding
    assert torch.equal(inside, outside)
    assert sam._fused[torch.float32][1] is fused
    assert not outside.is_inference()


def test_an_unfrozen_encoder_is_not_fused_and_receives_gradients(lite) -> None:
    sam = fused_sam(freeze="none")
    sam.encode(image()).embedding.square().mean().backward()
    assert sam.image_encoder.patch_embed.seq[0].c.weight.grad.abs().max() > 0


def test_masks_in_bfloat16_agree_with_full_precision(lite, shared) -> None:
    if resolve_precision("auto", torch.device("cpu")) != "bf16":
        pytest.skip("this CPU has no bfloat16 instructions: half a minute per image")
    from promise.data.images import read_image
    from promise.data.masks import read_mask
    from promise.data.transforms.recipes import build_transform

    sam = fused_sam()
    transform = build_transform("basic_color", image_size=256, pixels=sam.backbone.pixels)
    agreement = []
    for path in sorted((shared / "data/kvasir_seg/images").iterdir())[:3]:
        mask_path = next((shared / "data/kvasir_seg/masks").glob(f"{path.stem}.*"))
        pair = torch.from_numpy(read_image(path)).permute(2, 0, 1), torch.from_numpy(read_mask(mask_path))[None]
        pixels, mask = transform(pair[0], pair[1].to(torch.uint8))
        ys, xs = torch.nonzero(mask[0], as_tuple=True)
        box = torch.stack((xs.min(), ys.min(), xs.max(), ys.max())).float()[None]
        with torch.no_grad():
            full, _ = sam.decode(sam.encode(pixels[None]), Prompts(boxes=box))
            with torch.autocast("cpu", torch.bfloat16):
                half, _ = sam.decode(sam.encode(pixels[None]), Prompts(boxes=box))
        agreement.append(evaluate_pair((half[0, 0] > 0).numpy(), (full[0, 0] > 0).numpy())["dice"])
    assert min(agreement) > 0.98
    assert sum(agreement) / len(agreement) >= 0.995
