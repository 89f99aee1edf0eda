"""What is saved is what is loaded, ours and the original's; what does not fit is one clear error."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from promise import checkpoint
from promise.models.checkpoint import Metadata, load_reference_state, to_reference_state
from promise.models.reference_names import is_reference_name, own_name, reference_name
from promise.models.registry import NETS
from promise.runtime.errors import MissingFileError, UserError
from promise.types import Points

ORIGINALS = [name for name in NETS if name != "SAM"]
TRAINABLE = [name for name, spec in NETS.items() if spec.trainable]
pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


def shaken(net):
    """The net with every learned entry moved off its first value, BatchNorm's too."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for value in net.learned_state().values():
            value.add_(0.01 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else 3)
    return net


def describe(net, name: str, **more) -> Metadata:
    return Metadata(name, "tiny_vit", 4, net.sam.weights_sha256(), **more)


@pytest.fixture
def saved(build, tmp_path: Path) -> Path:
    """An APM_IPS_cross checkpoint."""
    net = shaken(build("APM_IPS_cross", num_points=4))
    checkpoint.save(net, tmp_path / "best.safetensors", describe(net, "APM_IPS_cross"))
    return tmp_path / "best.safetensors"


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINABLE)
def test_what_is_saved_is_loaded_bit_for_bit(name: str, build, tmp_path: Path) -> None:
    net = shaken(build(name, num_points=4))
    path = tmp_path / "new folder" / "best.safetensors"
    checkpoint.save(net, path, describe(net, name))
    again, metadata = checkpoint.load(path)
    assert equal(net.learned_state(), again.learned_state())
    assert metadata.net == name
    image = torch.rand(2, 3, 64, 64)
    points = Points(torch.rand(2, 4, 2) * 63, torch.tensor([[1, 1, 0, 0]] * 2)) if net.needs_prompts else None
    with torch.no_grad():
        logits = net.eval()(image, points).mask_logits
        assert logits.isfinite().all()
        assert torch.equal(logits, again.eval()(image, points).mask_logits)


def test_only_what_was_learned_is_in_the_file(saved: Path) -> None:
    with safe_open(saved, framework="pt") as stream:
        parts = {name.split(".")[0] for name in stream.keys()}  # noqa: SIM118
    assert parts == {"apm", "ips"}


def test_metadata_comes_back(build, tmp_path: Path) -> None:
    net = build("APM_cross", num_points=4)
    given = describe(
        net,
        "APM_cross",
        point_labels=(1, 0, 0, 1),
        seed=5,
        epoch=7,
        config={"lr": 1e-3, "augment": "basic_gray"},
        metrics={"val_iou": 0.25},
    )
    checkpoint.save(net, tmp_path / "a.safetensors", given)
    assert checkpoint.read_metadata(tmp_path / "a.safetensors") == given
    again, _ = checkpoint.load(tmp_path / "a.safetensors")
    with torch.no_grad():
        assert again.eval()(torch.rand(1, 3, 64, 64)).points.label.tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("freeze", ["FZ1", "FZ2", "FZ3", "FZ4"])
def test_what_a_freeze_switch_trained_is_kept(freeze: str, build, tmp_path: Path) -> None:
    net = build("IPS_GT", num_points=4, freeze=freeze)
    metadata = describe(net, "IPS_GT", freeze=freeze)  # with the SHA-256 of the untrained SAM
    shaken(net)
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    again, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert again.sam.freeze == freeze
    assert equal(net.state_dict(), again.state_dict())
    assert again.sam.weights_sha256() != metadata.sam_sha256


@pytest.mark.parametrize("kind", ["resnet", "cross"])
def test_the_gt_nets_take_their_shift_from_an_apm_ips_checkpoint(kind: str, build, tmp_path: Path) -> None:
    net = shaken(build(f"APM_IPS_{kind}", num_points=4))
    checkpoint.save(net, tmp_path / "a.safetensors", describe(net, f"APM_IPS_{kind}"))
    gt, metadata = checkpoint.load(tmp_path / "a.safetensors", net_name=f"APM_IPS_GT_{kind}")
    assert gt.needs_prompts
    assert equal(gt.ips.state_dict(), net.ips.state_dict())
    assert metadata.net == f"APM_IPS_{kind}"


def test_another_sam_is_refused(build, tmp_path: Path) -> None:
    net = build("IPS_GT")
    metadata = describe(net, "IPS_GT")
    with torch.no_grad():
        net.sam.mask_decoder.mask_tokens.weight[0, 0] += 1e-6
    other = net.sam.weights_sha256()
    assert other != metadata.sam_sha256
    checkpoint.save(net, tmp_path / "a.safetensors", describe(net, "IPS_GT"))
    with pytest.raises(UserError, match=rf"another tiny_vit.*{other[:12]}.*{metadata.sam_sha256[:12]}.*--sam-check"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_the_sam_of_the_training_is_found_again_by_its_path(build, tmp_path: Path) -> None:
    net = build("IPS_GT")
    with torch.no_grad():
        net.sam.mask_decoder.mask_tokens.weight.add_(1)
    own = {k.removeprefix("sam."): v for k, v in net.state_dict().items() if k.startswith("sam.")}
    torch.save(own, tmp_path / "own.pth")
    metadata = describe(net, "IPS_GT", sam_checkpoint=str(tmp_path / "own.pth"))
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    again, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert again.sam.weights_sha256() == metadata.sam_sha256
    (tmp_path / "own.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(UserError, match="Pass the SAM it was trained on with --sam-checkpoint"):
        checkpoint.load(tmp_path / "a.safetensors")
    again, _ = checkpoint.load(tmp_path / "a.safetensors", sam_checkpoint=tmp_path / "moved.pth")
    assert again.sam.weights_sha256() == metadata.sam_sha256


@pytest.mark.parametrize("name", ["APM_cross", "APM_IPS_resnet", "APM_IPS_GT_resnet", "IPS_GT", "SAM"])
def test_another_net_is_refused(name: str, saved: Path) -> None:
    with pytest.raises(UserError, match=f"trained as APM_IPS_cross, not {name}: drop --net, or use APM_IPS_GT_cross"):
        checkpoint.load(saved, net_name=name)


def test_a_state_of_another_net_is_one_readable_report(build) -> None:
    state = build("APM_IPS_cross", num_points=4).learned_state()
    words = (
        r"a file does not fit the net APM_IPS_resnet: .*missing: apm\.head\.fusion_conv1\.weight.*unknown: apm\.head\."
    )
    with pytest.raises(UserError, match=words) as caught:
        checkpoint.load_learned(build("APM_IPS_resnet"), state, origin="a file", target="APM_IPS_resnet")
    assert len(str(caught.value)) < 900


def test_a_long_name_of_another_backbone_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"was trained on tiny_vit, but --net .* names vit_b: use its short name"):
        checkpoint.load(saved, net_name="SAM_vit-b_APM_IPS_cross_train")


def test_a_loaded_net_is_in_evaluation_mode(saved: Path, build, tmp_path: Path) -> None:
    assert not any(module.training for module in checkpoint.load(saved)[0].modules())
    torch.save(to_reference_state(build("APM_resnet", num_points=4)), tmp_path / "original.pt")
    net, _ = checkpoint.load(tmp_path / "original.pt", net_name="APM_resnet", sam="tiny_vit")
    assert not any(module.training for module in net.modules())


def test_what_is_no_checkpoint_is_told_apart(saved: Path, build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder, not a checkpoint\. Did you mean .*best\.safetensors\?"):
        checkpoint.load(saved.parent)
    (tmp_path / "resume.pt").touch()
    with pytest.raises(UserError, match="is what --resume starts from"):
        checkpoint.load(tmp_path / "resume.pt")
    sam = build("SAM").sam
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    with pytest.raises(UserError, match=r"SAM's own weights.*--sam-checkpoint"):
        checkpoint.load(tmp_path / "sam.pth", net_name="APM_resnet")
    (tmp_path / "mine.csv").write_text("image_name,train_type,mask_name")
    with pytest.raises(UserError, match=r"mine\.csv cannot be read as PyTorch weights"):
        checkpoint.load(tmp_path / "mine.csv")


def test_another_backbone_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="was trained on tiny_vit, but --sam says vit_b"):
        checkpoint.load(saved, sam="vit_b")


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, -1])
def test_a_truncated_file_is_refused(kept: int, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"is not a readable safetensors file.*cut off"):
        checkpoint.load(saved)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is not a checkpoint of this package"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(MissingFileError, match=re.escape(str(tmp_path / name))):
            checkpoint.load(tmp_path / name, net_name="IPS_GT", sam="tiny_vit")


def test_a_failed_save_leaves_the_file_that_was_there(saved: Path, build, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    before = saved.read_bytes()

    def fail(_state: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    net = build("IPS_GT")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(net, saved, describe(net, "IPS_GT"))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


# --- the original's names -------------------------------------------------------------------------


def original_state(net) -> dict[str, Tensor]:
    """A net's state as the original would hold it, its unused entries included."""
    state = {k: v.clone() for k, v in to_reference_state(net).items()}
    if "apm_resnet.fc.weight" in state:
        state["apm_resnet.fc2.weight"], state["apm_resnet.fc2.bias"] = torch.randn(1024, 512), torch.randn(1024)
    for layer in range(3):
        if f"apm_cross.layers.{layer}.norm1.weight" in state:
            state[f"apm_cross.layers.{layer}.norm2.weight"] = torch.randn(48)
            state[f"apm_cross.layers.{layer}.norm2.bias"] = torch.randn(48)
    return state


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_originals_state_goes_in_and_comes_out_unchanged(name: str, wrapped: bool, build) -> None:
    source = build(name.replace("_GT", "") if name.startswith("APM") else name, num_points=4, seed=3)
    state = original_state(shaken(source))
    given = {"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state
    net = build(name, num_points=4, seed=4)
    load_reference_state(net, given)
    assert equal(to_reference_state(net), state)
    assert equal({k: v for k, v in source.state_dict().items() if k in net.state_dict()}, net.state_dict())


def test_the_originals_names_are_these(build) -> None:
    names = set(to_reference_state(build("APM_IPS_resnet"))) | set(to_reference_state(build("APM_IPS_cross")))
    expected = {
        *(f"ips_ffn.lin{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
        *(f"apm_feature_map.fusion_conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")),
        "apm_resnet.conv1.weight",
        "apm_resnet.bn1.running_mean",
        "apm_resnet.layer2.0.shortcut.0.weight",
        "apm_resnet.layer4.2.shortcut.1.weight",
        "apm_resnet.fc.weight",
        *(f"apm_cross.{kind}.weight" for kind in ("query_embedding", "query_feat", "level_embedding")),
        *(f"apm_cross.layers.{i}.cross_attention.in_proj_weight" for i in range(3)),
        *(f"apm_cross.layers.{i}.cross_attention.out_proj.bias" for i in range(3)),
        *(f"apm_cross.layers.{i}.ffn.lin{j}.weight" for i in range(3) for j in (1, 2)),
        *(f"apm_cross.layers.{i}.norm{j}.weight" for i in range(3) for j in (1, 3)),
        *(f"apm_cross.deconv{i}.{kind}.weight" for i in (1, 2, 3) for kind in ("deconv", "conv", "batchnorm")),
        "apm_cross_prompt.weight",
        "apm_cross_prompt.bias",
        "image_encoder.pos_embed",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mask_decoder.mask_tokens.weight",
    }
    assert expected <= names
    assert not [name for name in names if name.startswith(("apm.", "ips.", "sam."))]


@pytest.mark.parametrize("name", [n for n in TRAINABLE if "cross" in n or n == "APM_IPS_resnet"])
def test_names_translate_there_and_back(name: str, build) -> None:
    learned = list(build(name, num_points=4).learned_state())
    assert [own_name(reference_name(k)) for k in learned] == learned
    assert len({reference_name(k) for k in learned}) == len(learned)


def test_unused_and_strange_names() -> None:
    for name in ("apm_resnet.fc2.weight", "apm_cross.layers.0.norm2.bias"):
        assert own_name(name) is None
        assert is_reference_name(name)
    assert own_name("something.else") is None
    assert not is_reference_name("something.else")


def test_older_checkpoints_say_ffn(build) -> None:
    net, again = shaken(build("IPS_GT")), build("IPS_GT", seed=9)
    state = {k.replace("ips_ffn.", "ffn."): v for k, v in to_reference_state(net).items()}
    assert "ffn.lin1.weight" in state
    load_reference_state(again, state)
    assert equal(again.state_dict(), net.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("ips_ffn.lin1.bias"), r"1 of \d+ entries missing: ips\.lin1\.bias"),
        (lambda s: s.update({"stranger.weight": torch.zeros(1)}), r"1 of \d+ entries unknown: stranger\.weight"),
        (lambda s: s.update({"ips_ffn.lin1.bias": torch.zeros(3)}), r"1 of \d+ entries of another shape: ips\.lin1"),
        (lambda s: s.pop("mask_decoder.iou_token.weight"), r"1 of \d+ entries missing: sam\.mask_decoder\.iou_token"),
    ],
)
def test_an_original_state_that_does_not_fit_is_refused(change, words: str, build) -> None:
    net = build("IPS_GT")
    state = to_reference_state(net)
    change(state)
    with pytest.raises(UserError, match=words):
        load_reference_state(net, state)


# --- the original's files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "name", "points"),
    [
        ("APM_IPS_resnet", "APM_IPS_resnet", 4),
        ("APM_cross", "APM_cross", 2),
        ("APM_IPS_cross", "APM_IPS_GT_cross", 4),
        ("IPS_GT", "IPS_GT_resnet", 16),
    ],
)
def test_an_original_file_is_loaded_by_its_nets_name(trained: str, name: str, points: int, build, tmp_path) -> None:
    source = shaken(build(trained, num_points=points))
    with torch.no_grad():
        source.sam.mask_decoder.mask_tokens.weight.add_(1)  # the file brings its SAM
    torch.save(original_state(source), tmp_path / "epoch_7.pt")
    net, metadata = checkpoint.load(tmp_path / "epoch_7.pt", net_name=name, sam="tiny_vit")
    assert (metadata.sam, metadata.num_points) == ("tiny_vit", points)
    assert metadata.net == {"IPS_GT_resnet": "IPS_GT"}.get(name, name)
    assert metadata.sam_sha256 == source.sam.weights_sha256()
    assert equal({k: v for k, v in source.state_dict().items() if k in net.state_dict()}, net.state_dict())


def test_an_original_file_needs_its_nets_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"does not say which net it holds: name it with --net.*APM_IPS_resnet"):
        checkpoint.load(tmp_path / "a.pt")


def test_an_original_file_of_another_net_is_refused(build, tmp_path: Path) -> None:
    torch.save(original_state(build("APM_cross", num_points=4)), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: the original's state dict does not fit.*ips\.lin1\.weight"):
        checkpoint.load(tmp_path / "a.pt", net_name="APM_IPS_cross", sam="tiny_vit")


def test_loading_an_original_file_does_not_warn_of_random_weights(build, tmp_path: Path) -> None:
    torch.save(original_state(build("IPS_GT")), tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, metadata = checkpoint.load(tmp_path / "a.pt", net_name="IPS_GT", sam="tiny_vit")
    assert metadata.net == "IPS_GT"
