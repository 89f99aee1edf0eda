"""Random warps of features together with their masks."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F

from promise.models.prompters.dense import DenseHead, warp_maps
from promise.training.config import TrainConfig
from promise.training.feature_warp import random_warps, warp_batch
from promise.training.from_config import stages_of
from promise.types import Batch, Encoded


def test_features_follow_their_masks() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(6, 1, 64, 64)
    mask[:, :, 10:30, 14:50] = 1
    embedding = F.avg_pool2d(mask, 4)
    batch = Batch(image=Encoded(embedding), mask=mask, name=tuple("abcdef"), index=torch.arange(6))
    warped = warp_batch(batch)
    assert warped.name == batch.name
    assert torch.equal(warped.image.embedding, embedding)  # the prompter warps them
    features = warp_maps(embedding, warped.image.warp)
    assert (features - F.avg_pool2d(warped.mask, 4)).abs().mean() < 0.03
    assert (embedding - F.avg_pool2d(warped.mask, 4)).abs().mean() > 0.1
    assert len({one.sum().item() for one in warped.mask}) == 6


def test_warps_rotate_scale_and_shift_within_their_limits() -> None:
    torch.manual_seed(0)
    warp = random_warps(500)
    scale = warp[:, :, 0].norm(dim=1)
    assert torch.allclose(warp[:, :, :2] @ warp[:, :, :2].mT, scale[:, None, None] ** 2 * torch.eye(2), atol=1e-5)
    assert 0.67 < scale.min() < 0.7
    assert 1.4 < scale.max() < 1.5
    assert -0.301 < warp[:, :, 2].min() < -0.28
    assert 0.28 < warp[:, :, 2].max() < 0.301
    angle = torch.atan2(warp[:, 1, 0], warp[:, 0, 0])
    assert angle.min() < -3
    assert angle.max() > 3


def test_warping_behind_a_1x1_convolution_is_the_same() -> None:
    torch.manual_seed(0)
    x, warp, convolution = torch.randn(3, 16, 8, 8), random_warps(3), torch.nn.Conv2d(16, 5, 1)
    assert torch.allclose(warp_maps(convolution(x), warp), convolution(warp_maps(x, warp)), atol=1e-5)


def test_a_mirror_image_is_a_warp_of_the_head() -> None:
    torch.manual_seed(0)
    head = DenseHead(embedding_channels=16, tap_channels=(8, 8), widths=(16, 16, 16, 16)).eval()
    embedding, taps = torch.randn(2, 16, 16, 16), [torch.randn(2, 8, 8, 8) for _ in range(2)]
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    warped = head(embedding, taps, mirror)
    assert torch.allclose(warped, head(embedding.flip(3), [tap.flip(3) for tap in taps]), atol=1e-4)
    assert not torch.allclose(warped, head(embedding, taps), atol=1e-2)


def test_only_the_map_is_trained_on_warped_features() -> None:
    config = TrainConfig(net="APM_IPS_dense", seed=0, shift_epochs=1, cache="all", feature_augment="affine")
    assert [stage.augment for stage in stages_of(config)] == [warp_batch, None]
    plain = dataclasses.replace(config, feature_augment="symmetries")
    assert [stage.augment for stage in stages_of(plain)] == [None, None]
