"""Nets are found by short and long names and have the sizes of the reference implementation."""

from __future__ import annotations

import pytest
import torch

from promise.models import registry
from promise.models.prompters.base import PointPrompter
from promise.models.registry import NETS, NetSpec, build_parts, list_nets, parse_net_name, register, resolve_sam
from promise.models.sam.backbones import BACKBONES, Backbone, get_backbone


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", "blh")
def test_short_and_long_names_are_accepted(name: str, size: str) -> None:
    assert parse_net_name(name) == (NETS[name], None)
    for tail in ("", "_FZ0", "_FZ3"):
        assert parse_net_name(f"SAM_vit-{size}_{name}_train{tail}") == (NETS[name], f"vit_{size}")


def test_the_reference_implementations_name_of_ips_gt_is_accepted() -> None:
    assert parse_net_name("SAM_vit-b_IPS_GT_resnet_train")[0] is NETS["IPS_GT"]
    assert parse_net_name("IPS_GT_resnet")[0] is NETS["IPS_GT"]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("APM_resnett", "Did you mean 'APM_resnet'?"),
        ("apm_ips_cross", "Did you mean 'APM_IPS_cross'?"),
        ("SAM_vit-x_APM_resnet_train", "Known: APM_resnet, APM_cross"),
        ("", "Known: APM_resnet"),
    ],
)
def test_an_unknown_name_lists_the_known_names_and_the_nearest(name: str, suggestion: str, user_error) -> None:
    with user_error("unknown-net") as caught:
        parse_net_name(name)
    assert suggestion in str(caught.value)
    assert all(known in str(caught.value) for known in NETS)


@pytest.mark.parametrize(
    ("name", "sam", "expected"),
    [
        ("APM_resnet", None, "lite_medsam"),
        ("APM_resnet", "vit_l", "vit_l"),
        ("SAM_vit-h_APM_resnet_train", None, "vit_h"),
        ("SAM_vit-b_APM_resnet_train", "medsam_vit_b", "medsam_vit_b"),
    ],
)
def test_the_backbone_comes_from_the_option_the_long_name_or_the_default(
    name: str, sam: str | None, expected: str
) -> None:
    assert resolve_sam(name, sam) == expected


def test_a_backbone_that_contradicts_the_name_is_refused(user_error) -> None:
    with user_error("backbone-contradicts-net") as caught:
        resolve_sam("SAM_vit-b_APM_resnet_train", "vit_l")
    assert all(part in str(caught.value) for part in ("backbone vit_b", "--sam is vit_l", "--net"))


def test_an_unknown_backbone_lists_the_known_ones(user_error) -> None:
    with user_error("unknown-backbone") as caught:
        get_backbone("vit_c")
    assert "'vit_c'" in str(caught.value)
    assert "vit_b, vit_l, vit_h, medsam_vit_b, lite_medsam" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "apm", "ips"),
    # Counted by hand from the reference implementation, without the unused fc2 (525,312 parameters).
    [
        ("APM_resnet", 28.19e6, 0),
        ("APM_cross", 44.3e6, 0),
        ("APM_IPS_resnet", 28.19e6, 257 * 1024 + 1025 * 1024),
        ("APM_IPS_cross", 44.3e6, 257 * 1024 + 1025 * 1024),
        ("IPS_GT", 0, 257 * 1024 + 1025 * 1024),
        ("SAM", 0, 0),
    ],
)
def test_the_parts_have_as_many_parameters_as_in_the_reference_implementation(name: str, apm: float, ips: int) -> None:
    with torch.device("meta"):
        parts = build_parts(NETS[name], BACKBONES["vit_b"], num_points=16)
    counts = [0 if part is None else sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts[0] == pytest.approx(apm, rel=1e-3 if "cross" in name else 2e-4)
    assert counts[1] == ips
    line = next(line for line in list_nets("vit_b").splitlines() if line.startswith(f"{name} "))
    assert f" {sum(counts):,} " in line


def test_taps_are_the_last_three_global_blocks() -> None:
    taps = {name: BACKBONES[name].tap_blocks for name in ("vit_b", "vit_l", "vit_h", "medsam_vit_b")}
    assert taps == {"vit_b": (6, 9, 12), "vit_l": (12, 18, 24), "vit_h": (16, 24, 32), "medsam_vit_b": (6, 9, 12)}


class OneConvolution(torch.nn.Module):
    def __init__(self, *, tap_channels: tuple[int, ...], num_points: int) -> None:
        super().__init__()
        self.score = torch.nn.Conv2d(tap_channels[-1], 2 * num_points, 1)

    def forward(self, taps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.score(taps[-1]).mean((2, 3)).unflatten(1, (-1, 2))


def one_convolution(backbone: Backbone, num_points: int, labels: tuple[int, ...]) -> PointPrompter:
    head = OneConvolution(tap_channels=backbone.tap_channels, num_points=num_points)
    return PointPrompter(head, labels=labels, image_size=backbone.image_size)


def test_a_registered_net_is_found_built_and_used(monkeypatch: pytest.MonkeyPatch, build) -> None:
    for table in ("NETS", "_SHORT"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    spec = register(NetSpec("APM_IPS_mine", one_convolution, token_shift=True, aliases=("mine_too",)))
    assert parse_net_name("APM_IPS_mine") == parse_net_name("mine_too") == (spec, None)
    assert parse_net_name("SAM_vit-b_APM_IPS_mine_train") == (spec, "vit_b")
    assert "APM_IPS_mine" in list_nets("vit_b")
    net = build("APM_IPS_mine", num_points=4).eval()
    with torch.inference_mode():
        prediction = net(torch.rand(2, 3, 64, 64))
    assert prediction.points.xy.shape == (2, 4, 2)
    assert ((prediction.points.xy > 0) & (prediction.points.xy < 64)).all()
    assert prediction.points.label.tolist() == [[1, 1, 0, 0]] * 2
