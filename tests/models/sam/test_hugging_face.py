"""Hugging Face's ``SamModel`` with its adapter: masks equal those of its forward pass and of segment-anything."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promise.models import checkpoint
from promise.models.sam.backbones import (
    BACKBONES,
    HUGGING_FACE,
    build_sam,
    get_backbone,
    hugging_face_backbone,
    register,
)
from promise.models.sam.weights import state_sha256
from promise.runtime.errors import MissingFileError
from promise.types import Points, Prompts

transformers = pytest.importorskip("transformers", reason="needs the [hf] extra")

NAME = "tiny_hf"
# segment-anything's names → transformers', applied in this order.
RENAMED = (
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.", "vision_encoder."),
    *((rf"\.neck\.{n}\.", f".neck.{name}.") for n, name in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    *(
        (rf"\.mask_downscaling\.{n}\.", f".mask_embed.{name}.")
        for n, name in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))
    ),
    *(
        (rf"\.output_upscaling\.{n}\.", f".upscale_{name}.")
        for n, name in ((0, "conv1"), (1, "layer_norm"), (3, "conv2"))
    ),
    *(
        (rf"(_mlps\.\d|iou_prediction_head)\.layers\.{n}\.", rf"\1.{name}.")
        for n, name in ((0, "proj_in"), (2, "proj_out"), (1, "layers.0"))
    ),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of segment-anything under transformers' names."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        result[name] = value
    return result


def tiny_config() -> Any:
    """The sizes of tiny_vit."""
    return transformers.SamConfig(
        vision_config={
            "hidden_size": 48,
            "output_channels": 32,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 16,
            "window_size": 3,
            "global_attn_indexes": [1, 3, 5],
            "num_pos_feats": 16,
            "mlp_dim": 192,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32},
    )


@pytest.fixture(scope="module")
def meta_file(tiny_vit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of tiny_vit under segment-anything's names."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("meta") / "sam.pth"
    state = get_backbone(tiny_vit).build().state_dict()
    for value in state.values():
        if value.ndim > 1:
            value.mul_(2)  # larger logits make the comparisons more sensitive
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def folder(meta_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, saved by transformers."""
    state = renamed(torch.load(meta_file, weights_only=True))
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    model = transformers.SamModel(tiny_config())
    model.load_state_dict(state)
    path = tmp_path_factory.mktemp("hf") / "tiny sam"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.SamModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tiny_hf(folder: Path) -> Iterator[str]:
    register(hugging_face_backbone(NAME, folder))
    yield NAME
    del BACKBONES[NAME]


@pytest.fixture
def net(tiny_hf: str, build) -> Any:
    """Frozen, without learned parts, with the folder's weights."""
    return build("SAM", sam=tiny_hf, sam_checkpoint="auto").eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def some_prompts(*kinds: str, batch: int = 3) -> Prompts:
    generator = torch.Generator().manual_seed(9)
    corner = torch.rand(batch, 2, generator=generator) * 32
    label = torch.randint(0, 2, (batch, 5), generator=generator)
    if "padding" in kinds:
        label[0, 3:] = -1
    drawn = {
        "points": Points(torch.rand(batch, 5, 2, generator=generator) * 64, label),
        "boxes": torch.cat((corner, corner + 20), dim=1),
        "masks": torch.randn(batch, 1, 16, 16, generator=generator),
    }
    return Prompts(**{kind: value for kind, value in drawn.items() if kind in kinds})


KINDS = [kinds for n in (1, 2, 3) for kinds in itertools.combinations(("points", "boxes", "masks"), n)]


@pytest.mark.parametrize("kinds", [*KINDS, ("points", "padding")], ids="+".join)
@torch.no_grad()
def test_masks_equal_those_of_the_models_own_forward_pass(kinds: tuple[str, ...], net: Any, theirs: Any) -> None:
    image, prompts = images(), some_prompts(*kinds)
    masks, quality = net.sam.decode(net.encode(image), prompts, channels=(0, 1, 2, 3))
    points, boxes = prompts.points, prompts.boxes
    arguments = {
        "input_points": None if points is None else points.xy[:, None],  # (B, 1, P, 2)
        "input_labels": None if points is None else points.label[:, None],
        "input_boxes": None if boxes is None else boxes[:, None],
        "input_masks": prompts.masks,
    }
    single, several = (theirs(pixel_values=image, multimask_output=many, **arguments) for many in (False, True))
    expected = torch.cat((single.pred_masks, several.pred_masks), dim=2)[:, 0]
    assert masks.std() > 0.1
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        quality, torch.cat((single.iou_scores, several.iou_scores), dim=2)[:, 0], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(net(image, prompts).mask_logits, several.pred_masks[:, 0, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kinds", [*KINDS, ("points", "padding"), ("none",)], ids="+".join)
@torch.no_grad()
def test_masks_equal_those_of_segment_anything_with_the_same_weights(
    kinds: tuple[str, ...], net: Any, tiny_vit: str, meta_file: Path, build
) -> None:
    meta = build("SAM", sam=tiny_vit, sam_checkpoint=meta_file).eval()
    image = images()
    prompts = Prompts.none(3) if kinds == ("none",) else some_prompts(*kinds)
    ours, expected = net.encode(image), meta.encode(image)
    torch.testing.assert_close(ours.embedding, expected.embedding, atol=1e-4, rtol=1e-4)
    found, target = net.decode(ours, prompts), meta.decode(expected, prompts)
    torch.testing.assert_close(found.mask_logits, target.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.ious, target.ious, atol=1e-4, rtol=0)


@torch.no_grad()
def test_taps_are_the_outputs_of_the_tapped_blocks(tiny_hf: str, build, theirs: Any) -> None:
    net = build("APM_cross", sam=tiny_hf, sam_checkpoint="auto", num_points=4)
    seen: dict[int, Tensor] = {}
    hooks = [
        theirs.vision_encoder.layers[number - 1].register_forward_hook(
            lambda _m, _i, out, number=number: seen.update({number: out[0] if isinstance(out, tuple) else out})
        )
        for number in (2, 4, 6)
    ]
    theirs.get_image_embeddings(images())
    for hook in hooks:
        hook.remove()
    taps = net.encode(images()).taps
    assert net.sam.backbone.tap_blocks == (2, 4, 6)
    for tap, number in zip(taps, (2, 4, 6), strict=True):
        assert tap.shape == (3, 48, 4, 4)
        torch.testing.assert_close(tap, seen[number].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_token_shift_is_added_to_the_mask_tokens(net: Any) -> None:
    prompts = some_prompts("points")
    encoded = net.encode(images())
    shift = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    plain, _ = net.sam.decode(encoded, prompts)
    ours, _ = net.sam.decode(encoded, prompts, token_shift=shift.expand(3, -1, -1))
    net.sam.mask_decoder.mask_tokens.weight.add_(shift)
    expected, _ = net.sam.decode(encoded, prompts)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["IPS_GT", "APM_IPS_resnet"])
def test_training_steps_change_the_learned_parts_and_only_those(name: str, precision: str, tiny_hf: str, build) -> None:
    net = build(name, sam=tiny_hf, sam_checkpoint="auto", num_points=4, precision=precision).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    sha = net.sam.weights_sha256()
    learned = {key for key, p in net.named_parameters() if p.requires_grad}
    assert learned == {key for key, _ in net.named_parameters() if not key.startswith("sam.")}
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # a layer that follows zeros changes in the second step
        optimizer.zero_grad()
        prediction = net(images(), some_prompts("points") if net.needs_prompts else None)
        target = (torch.arange(16) // 4 % 2).float().expand_as(prediction.mask_logits)
        torch.nn.functional.binary_cross_entropy_with_logits(prediction.mask_logits, target).backward()
        optimizer.step()
    assert {key for key in learned if torch.equal(net.state_dict()[key], before[key])} == set()
    assert net.sam.weights_sha256() == sha
    assert not net.sam.training


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_unfrozen_sam_receives_gradients_except_for_the_frequencies(
    checkpointing: bool, tiny_hf: str, build
) -> None:
    net = build("APM_IPS_resnet", sam=tiny_hf, sam_checkpoint="auto", num_points=4, freeze="none").train()
    net.sam.gradient_checkpointing = checkpointing
    assert not [key for key, _ in net.named_parameters() if "positional_embedding" in key]
    assert "sam.prompt_encoder.shared_embedding.positional_embedding" in net.state_dict()
    net(images()).mask_logits.square().mean().backward()
    without = {
        key.removeprefix("sam.") for key, p in net.named_parameters() if key.startswith("sam.") and p.grad is None
    }
    # Automatic points use no mask prompts, and the quality head does not contribute to the loss.
    assert {re.sub(r"\.(weight|bias)$", "", key).split(".")[1] for key in without} <= {
        "mask_embed",
        "iou_prediction_head",
        "point_embed",
        "output_hypernetworks_mlps",
    }
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.sam.image_encoder.parameters())


def test_a_checkpoint_is_loaded_on_the_folder_that_it_was_trained_on(
    tiny_hf: str, folder: Path, build, tmp_path: Path, user_error
) -> None:
    net = build("IPS_GT", sam=tiny_hf, sam_checkpoint=folder).eval()
    path = tmp_path / "best.safetensors"
    sha = net.sam.weights_sha256()
    checkpoint.save(net, path, checkpoint.Metadata("IPS_GT", tiny_hf, 4, sha))
    again, _ = checkpoint.load(path)
    prompts = some_prompts("points")
    with torch.no_grad():
        assert torch.equal(again(images(), prompts).mask_logits, net(images(), prompts).mask_logits)
    other = transformers.SamModel(tiny_config())
    other.save_pretrained(tmp_path / "other")
    with user_error("another-sam"):
        checkpoint.load(path, sam_checkpoint=tmp_path / "other")


# --- backbones and folders ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "meta"), [("hf_vit_b", "vit_b"), ("hf_vit_l", "vit_l"), ("hf_vit_h", "vit_h")])
def test_the_backbones_have_the_sizes_of_metas(name: str, meta: str) -> None:
    ours, theirs = get_backbone(name), get_backbone(meta)
    for field in ("image_size", "tap_blocks", "tap_channels", "pixels", "embedding_side", "embedding_channels"):
        assert getattr(ours, field) == getattr(theirs, field), field
    with torch.device("meta"):
        state = renamed(theirs.build().state_dict())
        own = ours.build().state_dict()
    expected = {re.sub(r"^vision_encoder\.", "image_encoder.", key): value.shape for key, value in state.items()}
    assert {key: value.shape for key, value in own.items()} == expected


def test_a_backbone_is_described_by_the_configuration_of_a_folder(folder: Path) -> None:
    row = hugging_face_backbone("mine", folder, pixels="minmax", tap_blocks=(1, 5))
    assert (row.image_size, row.embedding_side, row.embedding_channels) == (64, 4, 32)
    assert (row.tap_blocks, row.tap_channels, row.pixels) == ((1, 5), (48, 48), "minmax")
    assert row.weights == str(folder)
    assert "mine" not in BACKBONES
    assert hugging_face_backbone("mine", folder).tap_blocks == (2, 4, 6)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "sam2"},
        {"vision_config": {"image_size": [64, 32]}},
        {"mask_decoder_config": {"num_multimask_outputs": 4}},
        "no json",
    ],
    ids=["another model", "not square", "four masks", "no json"],
)
def test_a_configuration_that_is_not_supported_is_an_error(
    change: Any, folder: Path, tmp_path: Path, user_error
) -> None:
    values = json.loads((folder / "config.json").read_text())
    for key, value in change.items() if isinstance(change, dict) else ():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(change if isinstance(change, str) else json.dumps(values))
    with user_error("unsupported-config"):
        hugging_face_backbone("mine", tmp_path)


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path, user_error) -> None:
    with user_error("missing-file"):
        hugging_face_backbone("mine", tmp_path)


# --- reading --------------------------------------------------------------------------------------


def test_a_folder_and_its_file_contain_the_same_weights(folder: Path, tiny_hf: str) -> None:
    (file,) = folder.glob("*.safetensors")
    state = HUGGING_FACE.read(str(folder))
    assert state_sha256(state) == state_sha256(HUGGING_FACE.read(file))
    assert state_sha256(state) == state_sha256(build_sam(get_backbone(tiny_hf)).state_dict())
    assert "prompt_encoder.shared_embedding.positional_embedding" in state


def test_weights_in_several_files_and_in_half_precision_are_read(theirs: Any, tiny_hf: str, tmp_path: Path) -> None:
    model = transformers.SamModel(theirs.config)
    model.load_state_dict(theirs.state_dict())
    model.half().save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model*.safetensors"))) > 1
    sam = build_sam(get_backbone(tiny_hf), tmp_path)
    assert {value.dtype for value in sam.state_dict().values()} == {torch.float32}
    weight = theirs.vision_encoder.layers[0].mlp.lin1.weight
    assert torch.equal(sam.image_encoder.layers[0].mlp.lin1.weight, weight.half().float())


def test_a_folder_of_another_architecture_is_refused(folder: Path, tiny_hf: str, tmp_path: Path, user_error) -> None:
    config = tiny_config()
    config.vision_config.num_hidden_layers = 5
    transformers.SamModel(config).save_pretrained(tmp_path)
    with user_error("weights-misfit"):
        build_sam(get_backbone(tiny_hf), tmp_path)


def test_files_of_other_kinds_are_refused(tiny_hf: str, meta_file: Path, tmp_path: Path, user_error) -> None:
    with user_error("unreadable-weights"):
        build_sam(get_backbone(tiny_hf), meta_file)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with user_error("missing-safetensors"):
        build_sam(get_backbone(tiny_hf), tmp_path)


@pytest.mark.parametrize("name", ["facebook/sam-vit-base", "my-sam", "some/where/else", "/no/where", "./sam"])
def test_without_a_network_the_error_contains_extra_folder_and_command(
    name: str, tiny_hf: str, monkeypatch, user_error
):
    calls = []

    def offline(name: str, *, local_files_only: bool, **_: Any) -> str:
        calls.append(local_files_only)
        raise ConnectionError("no route to host\nmany more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with user_error("missing-weights") as caught:
        build_sam(get_backbone(tiny_hf), name)
    assert isinstance(caught.value, MissingFileError)
    text = str(caught.value)
    assert all(part in text for part in (name, "promise-sam[hf]", "folder", "--sam-checkpoint", "hf download"))
    assert "\n" not in text
    assert calls == ([True, False] if name in ("facebook/sam-vit-base", "my-sam") else [])


def test_a_cached_model_is_used_without_the_network(folder: Path, tiny_hf: str, monkeypatch) -> None:
    calls = []

    def cached(name: str, *, local_files_only: bool, **_: Any) -> str:
        calls.append((name, local_files_only))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    build_sam(get_backbone(tiny_hf), "some/sam")
    assert calls == [("some/sam", True)]


def test_a_model_of_which_only_the_configuration_is_cached_is_downloaded(
    folder: Path, tiny_hf: str, tmp_path: Path, monkeypatch
) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    calls = []

    def fetch(name: str, *, local_files_only: bool, **_: Any) -> str:
        calls.append((name, local_files_only))
        return str(tmp_path if local_files_only else folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    build_sam(get_backbone(tiny_hf), "some/sam")
    assert calls == [("some/sam", True), ("some/sam", False)]


def test_without_the_extra_the_error_names_it(folder: Path, tiny_hf: str, monkeypatch, user_error) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for work in (lambda: build_sam(get_backbone(tiny_hf)), lambda: hugging_face_backbone("mine", folder)):
        with user_error("missing-extra") as caught:
            work()
        assert "promise-sam[hf]" in str(caught.value)


def test_transformers_is_imported_on_first_use_only() -> None:
    code = "import sys, promise.models.registry; sys.exit(len({'transformers', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
