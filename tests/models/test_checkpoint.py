"""Checkpoints, and state dicts of the reference implementation, are saved, loaded and verified."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

import promise
from promise import checkpoint
from promise.models.checkpoint import Metadata, load_reference_state, to_reference_state
from promise.models.reference_names import is_reference_name, own_name, reference_name
from promise.models.registry import NETS
from promise.models.state_dicts import load_learned
from promise.runtime.errors import MissingFileError, UserError
from promise.types import Points

REFERENCE_NETS = [name for name in NETS if name != "SAM"]
TRAINABLE = [name for name, spec in NETS.items() if spec.trainable]
pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


def randomised(net):
    """Change all learned entries of a net from their initial values, including those of BatchNorm."""
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
    net = randomised(build("APM_IPS_cross", num_points=4))
    checkpoint.save(net, tmp_path / "best.safetensors", describe(net, "APM_IPS_cross"))
    return tmp_path / "best.safetensors"


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINABLE)
def test_saved_parts_are_loaded_bit_for_bit(name: str, build, tmp_path: Path) -> None:
    net = randomised(build(name, num_points=4))
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


def test_the_file_contains_only_learned_parts(saved: Path) -> None:
    with safe_open(saved, framework="pt") as stream:
        parts = {name.split(".")[0] for name in stream.keys()}  # noqa: SIM118
    assert parts == {"apm", "ips"}


def test_metadata_is_saved_and_read(build, tmp_path: Path) -> None:
    net = build("APM_cross", num_points=4)
    metadata = describe(
        net,
        "APM_cross",
        point_labels=(1, 0, 0, 1),
        seed=5,
        epoch=7,
        config={"lr": 1e-3, "augment": "basic_gray"},
        metrics={"val_iou": 0.25},
    )
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    assert checkpoint.read_metadata(tmp_path / "a.safetensors") == metadata
    again, _ = checkpoint.load(tmp_path / "a.safetensors")
    with torch.no_grad():
        assert again.eval()(torch.rand(1, 3, 64, 64)).points.label.tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("freeze", ["FZ1", "FZ2", "FZ3", "FZ4"])
def test_parts_that_a_freeze_switch_trains_are_saved(freeze: str, build, tmp_path: Path) -> None:
    net = build("IPS_GT", num_points=4, freeze=freeze)
    metadata = describe(net, "IPS_GT", freeze=freeze)  # with the SHA-256 of the untrained SAM
    randomised(net)
    checkpoint.save(net, tmp_path / "a.safetensors", metadata)
    again, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert again.sam.freeze == freeze
    assert equal(net.state_dict(), again.state_dict())
    assert again.sam.weights_sha256() != metadata.sam_sha256


@pytest.mark.parametrize("kind", ["resnet", "cross"])
def test_the_gt_nets_load_the_token_shift_of_an_apm_ips_checkpoint(kind: str, build, tmp_path: Path) -> None:
    net = randomised(build(f"APM_IPS_{kind}", num_points=4))
    checkpoint.save(net, tmp_path / "a.safetensors", describe(net, f"APM_IPS_{kind}"))
    gt, metadata = checkpoint.load(tmp_path / "a.safetensors", net_name=f"APM_IPS_GT_{kind}")
    assert gt.needs_prompts
    assert equal(gt.ips.state_dict(), net.ips.state_dict())
    assert metadata.net == f"APM_IPS_{kind}"


def test_another_sam_is_refused(build, tmp_path: Path, user_error) -> None:
    net = build("IPS_GT")
    metadata = describe(net, "IPS_GT")
    with torch.no_grad():
        net.sam.mask_decoder.mask_tokens.weight[0, 0] += 1e-6
    other = net.sam.weights_sha256()
    assert other != metadata.sam_sha256
    checkpoint.save(net, tmp_path / "a.safetensors", describe(net, "IPS_GT"))
    with user_error("another-sam") as caught:
        checkpoint.load(tmp_path / "a.safetensors")
    message = str(caught.value)
    assert message.index("tiny_vit") < message.index(other[:12]) < message.index(metadata.sam_sha256[:12])
    assert "--sam-checkpoint" in message


def test_the_sam_used_in_training_is_found_by_its_path(build, tmp_path: Path, user_error) -> None:
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
    with user_error("another-sam") as caught:
        checkpoint.load(tmp_path / "a.safetensors")
    assert "--sam-checkpoint" in str(caught.value)
    again, _ = checkpoint.load(tmp_path / "a.safetensors", sam_checkpoint=tmp_path / "moved.pth")
    assert again.sam.weights_sha256() == metadata.sam_sha256


@pytest.mark.parametrize("name", ["APM_cross", "APM_IPS_resnet", "APM_IPS_GT_resnet", "IPS_GT", "SAM"])
def test_another_net_is_refused(name: str, saved: Path, user_error) -> None:
    with user_error("another-net") as caught:
        checkpoint.load(saved, net_name=name)
    assert f"APM_IPS_cross, not {name}" in str(caught.value)
    assert "Drop --net, or pass --net APM_IPS_GT_cross" in str(caught.value)


def test_one_error_describes_how_a_state_of_another_net_differs(build, user_error) -> None:
    state = build("APM_IPS_cross", num_points=4).learned_state()
    with user_error("checkpoint-misfit") as caught:
        load_learned(build("APM_IPS_resnet"), state, origin="a file", target="APM_IPS_resnet")
    message = str(caught.value)
    pattern = r"a file .*APM_IPS_resnet: .*missing .*: apm\.head\.fusion_conv1\.weight.*unexpected .*: apm\.head\."
    assert re.match(pattern, message)
    assert len(message) < 900


def test_a_long_name_of_another_backbone_is_refused(saved: Path, user_error) -> None:
    with user_error("another-backbone") as caught:
        checkpoint.load(saved, net_name="SAM_vit-b_APM_IPS_cross_train")
    assert all(part in str(caught.value) for part in ("on tiny_vit", "backbone vit_b", "Use --net APM_IPS_cross."))


def test_a_loaded_net_is_in_evaluation_mode(saved: Path, build, tmp_path: Path) -> None:
    assert not any(module.training for module in checkpoint.load(saved)[0].modules())
    torch.save(to_reference_state(build("APM_resnet", num_points=4)), tmp_path / "reference.pt")
    net, _ = checkpoint.load(tmp_path / "reference.pt", net_name="APM_resnet", sam="tiny_vit")
    assert not any(module.training for module in net.modules())


def test_files_that_are_no_checkpoint_are_refused(saved: Path, build, tmp_path: Path, user_error) -> None:
    with user_error("is-a-folder") as caught:
        checkpoint.load(saved.parent)
    assert str(saved) in str(caught.value)
    (tmp_path / "resume.pt").touch()
    with user_error("resume-state") as caught:
        checkpoint.load(tmp_path / "resume.pt")
    assert all(part in str(caught.value) for part in ("resume.pt", "--resume", "best.safetensors"))
    sam = build("SAM").sam
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    with user_error("sam-weights-only") as caught:
        checkpoint.load(tmp_path / "sam.pth", net_name="APM_resnet")
    assert "--sam-checkpoint" in str(caught.value)
    (tmp_path / "mine.csv").write_text("image_name,train_type,mask_name")
    with user_error("unreadable-weights") as caught:
        checkpoint.load(tmp_path / "mine.csv")
    assert "mine.csv" in str(caught.value)


def change(path: Path, header: dict[str, str] | None = None, **entries: Tensor) -> Path:
    """Replace the metadata or entries of a checkpoint, as another program may."""
    with safe_open(path, framework="pt") as stream:
        known = stream.metadata()
    state = {**safetensors.torch.load_file(path), **entries}
    safetensors.torch.save_file(state, path, metadata=known if header is None else header)
    return path


def change_metadata(path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    with safe_open(path, framework="pt") as stream:
        header = stream.metadata()
    values = json.loads(header["promise"])
    edited = edit(values)
    text = edited if isinstance(edited, str) else json.dumps(values if edited is None else edited)
    return change(path, {**header, "promise": text})


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda values: "", "no JSON"),
        (lambda values: "{nope", "no JSON"),
        (lambda values: "[" * 100_000, "nested too deeply"),
        (lambda values: '{"a":' * 100_000, "nested too deeply"),
        (lambda values: '{"num_points": ' + "9" * 5000 + "}", "no JSON"),
        (lambda values: [values], "no JSON object, but list"),
        (lambda values: "3", "no JSON object, but int"),
        (lambda values: {**values, "zz": 1}, "unknown key 'zz'"),
        *(
            (lambda values, key=key: {k: v for k, v in values.items() if k != key}, f"{key} is missing")
            for key in ("net", "sam", "num_points", "sam_sha256")
        ),
        *(
            (lambda values, key=key, value=value: {**values, key: value}, f"{key} is ")
            for key, value in (
                ("net", 3),
                ("net", None),
                ("sam", ["vit_b"]),
                ("num_points", "4"),
                ("num_points", 4.0),
                ("num_points", True),
                ("sam_sha256", None),
                ("point_labels", 10**400),
                ("point_labels", [[1]]),
                ("freeze", {}),
                ("seed", 0.5),
                ("seed", -1),
                ("seed", 10**22),
                ("epoch", "1"),
                ("sam_checkpoint", None),
                ("config", []),
                ("config", None),
                ("metrics", {"iou": []}),
                ("seen", {"val": 3}),
                ("seen", {"val": [3]}),
                ("postprocess", 5),
                ("tuning", 1),
                ("lesions", []),
                ("quality", "good"),
            )
        ),
        (lambda values: {**values, "config": {"augment": [1]}}, "config.augment"),
        (lambda values: {**values, "num_points": 10**9}, "at most 1024"),
        (lambda values: {**values, "num_points": -2}, "-2"),
        (lambda values: {**values, "num_points": 4, "point_labels": [1]}, "4 values"),
        (lambda values: {**values, "freeze": "FZ9"}, "FZ9"),
    ],
)
def test_invalid_metadata_is_one_message(edit: Any, fact: str, saved: Path, user_error) -> None:
    change_metadata(saved, edit)
    for read in (checkpoint.load, checkpoint.read_metadata):
        with user_error("invalid-metadata") as caught:
            read(saved)
        message = str(caught.value)
        assert message.startswith(f"{saved} has invalid metadata: ")
        assert fact in message
        assert "Copy the original file again." in message
        assert "\n" not in message
        assert len(message) < 1000


def test_metadata_without_an_entry_is_one_message(saved: Path, user_error) -> None:
    change(saved, {"format": checkpoint.FORMAT})
    with user_error("invalid-metadata"):
        checkpoint.load(saved)


@pytest.mark.parametrize(("key", "code"), [("net", "unknown-net"), ("sam", "unknown-backbone")])
def test_an_unknown_net_is_named_with_its_file(key: str, code: str, saved: Path, user_error) -> None:
    change_metadata(saved, lambda values: {**values, key: "later"})
    with user_error(code) as caught:
        checkpoint.load(saved)
    assert str(caught.value).startswith(f"{saved}: ")
    assert "'later'" in str(caught.value)


def test_metadata_without_optional_keys_is_read(saved: Path) -> None:
    change_metadata(saved, lambda v: {k: v[k] for k in ("net", "sam", "num_points", "sam_sha256", "sam_checkpoint")})
    assert checkpoint.load(saved)[1].point_labels is None


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused(kind: torch.dtype, saved: Path, build, tmp_path: Path, user_error) -> None:
    state = safetensors.torch.load_file(saved)
    name = next(name for name, value in state.items() if value.is_floating_point())
    change(saved, **{name: state[name].to(kind)})
    with user_error("weights-of-another-type") as caught:
        checkpoint.load(saved)
    assert all(fact in str(caught.value) for fact in (str(saved), name, str(kind), "the original file"))

    reference = to_reference_state(build("APM_resnet", num_points=4))
    torch.save({**reference, "apm_resnet.fc.weight": reference["apm_resnet.fc.weight"].to(kind)}, tmp_path / "a.pt")
    with user_error("weights-of-another-type") as caught:
        checkpoint.load(tmp_path / "a.pt", net_name="APM_resnet", sam="tiny_vit")
    assert "a.pt" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, saved: Path, build, tmp_path: Path, user_error) -> None:
    state = safetensors.torch.load_file(saved)
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name].view(-1)[0] = value
    change(saved, **{name: state[name]})
    with user_error("non-finite-weights") as caught:
        checkpoint.load(saved)
    assert all(fact in str(caught.value) for fact in (str(saved), name, "an earlier epoch"))

    weights = build("SAM").sam.state_dict()
    weights[next(iter(weights))].view(-1)[0] = value
    torch.save(weights, tmp_path / "sam.pth")
    with user_error("non-finite-weights") as caught:
        build("SAM", sam_checkpoint=tmp_path / "sam.pth")
    assert "sam.pth" in str(caught.value)


def test_halved_weights_are_loaded(saved: Path) -> None:
    state = safetensors.torch.load_file(saved)
    change(saved, **{name: value.half() for name, value in state.items() if value.is_floating_point()})
    checkpoint.load(saved)
    big = next(name for name, value in state.items() if value.is_floating_point())
    change(saved, **{big: state[big].double() + 1e300})  # infinite in single precision
    with pytest.raises(UserError, match=big):
        checkpoint.load(saved)


@pytest.mark.parametrize("value", [b"best.safetensors", None, 3])
def test_a_value_that_is_no_path_is_refused(value: Any, saved: Path, build, user_error) -> None:
    for read in (promise.load, checkpoint.load, checkpoint.read_metadata, checkpoint.require):
        with user_error("not-a-path") as caught:
            read(value)
        assert type(value).__name__ in str(caught.value)
    with user_error("unknown-net"):
        promise.build_net(value)
    if value is not None:
        with user_error("not-a-path"):
            build("SAM", sam_checkpoint=value)


def test_another_backbone_is_refused(saved: Path, user_error) -> None:
    with user_error("another-backbone") as caught:
        checkpoint.load(saved, sam="vit_b")
    assert all(part in str(caught.value) for part in ("on tiny_vit", "--sam is vit_b"))


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, -1])
def test_a_truncated_file_is_refused(kept: int, saved: Path, user_error) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with user_error("unreadable-checkpoint") as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)


def test_another_safetensors_file_is_refused(tmp_path: Path, user_error) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with user_error("not-a-checkpoint"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_the_error_about_a_missing_file_contains_its_path(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(MissingFileError, match=re.escape(str(tmp_path / name))):
            checkpoint.load(tmp_path / name, net_name="IPS_GT", sam="tiny_vit")


def test_a_failed_save_leaves_an_existing_file_unchanged(saved: Path, build, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- names of the reference implementation --------------------------------------------------------


def reference_state(net) -> dict[str, Tensor]:
    """The state of a net as the reference implementation saves it, including unused entries."""
    state = {k: v.clone() for k, v in to_reference_state(net).items()}
    if "apm_resnet.fc.weight" in state:
        state["apm_resnet.fc2.weight"], state["apm_resnet.fc2.bias"] = torch.randn(1024, 512), torch.randn(1024)
    for layer in range(3):
        if f"apm_cross.layers.{layer}.norm1.weight" in state:
            state[f"apm_cross.layers.{layer}.norm2.weight"] = torch.randn(48)
            state[f"apm_cross.layers.{layer}.norm2.bias"] = torch.randn(48)
    return state


@pytest.mark.parametrize(("name", "wrapped"), [*((name, False) for name in REFERENCE_NETS), ("APM_IPS_cross", True)])
def test_a_reference_state_is_loaded_and_converted_back_unchanged(name: str, wrapped: bool, build) -> None:
    source = build(name.replace("_GT", "") if name.startswith("APM") else name, num_points=4, seed=3)
    state = reference_state(randomised(source))
    loaded = {"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state
    net = build(name, num_points=4, seed=4)
    load_reference_state(net, loaded)
    assert equal(to_reference_state(net), state)
    assert equal({k: v for k, v in source.state_dict().items() if k in net.state_dict()}, net.state_dict())


def test_names_are_those_of_the_reference_implementation(build) -> None:
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
def test_names_are_converted_in_both_directions(name: str, build) -> None:
    learned = list(build(name, num_points=4).learned_state())
    assert [own_name(reference_name(k)) for k in learned] == learned
    assert len({reference_name(k) for k in learned}) == len(learned)


def test_unused_and_unknown_names_have_no_own_name() -> None:
    for name in ("apm_resnet.fc2.weight", "apm_cross.layers.0.norm2.bias"):
        assert own_name(name) is None
        assert is_reference_name(name)
    assert own_name("something.else") is None
    assert not is_reference_name("something.else")


def test_the_names_of_older_checkpoints_are_accepted(build) -> None:
    net, again = randomised(build("IPS_GT")), build("IPS_GT", seed=9)
    state = {k.replace("ips_ffn.", "ffn."): v for k, v in to_reference_state(net).items()}
    assert "ffn.lin1.weight" in state
    load_reference_state(again, state)
    assert equal(again.state_dict(), net.state_dict())


@pytest.mark.parametrize(
    ("change", "kind", "entry"),
    [
        (lambda s: s.pop("ips_ffn.lin1.bias"), "missing", "ips.lin1.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unexpected", "extra.weight"),
        (lambda s: s.update({"ips_ffn.lin1.bias": torch.zeros(3)}), "of another shape", "ips.lin1.bias"),
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "missing", "sam.mask_decoder.iou_token.weight"),
    ],
    ids=["missing", "unexpected", "shape", "missing in SAM"],
)
def test_a_reference_state_that_does_not_match_is_refused(change, kind: str, entry: str, build, user_error) -> None:
    net = build("IPS_GT")
    state = to_reference_state(net)
    change(state)
    with user_error("checkpoint-misfit") as caught:
        load_reference_state(net, state)
    assert re.search(rf"1 {kind} \(of \d+ entries\): {re.escape(entry)}[.,;]", str(caught.value))


# --- files of the reference implementation --------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "name", "points"),
    [
        ("APM_IPS_resnet", "APM_IPS_resnet", 4),
        ("APM_cross", "APM_cross", 2),
        ("APM_IPS_cross", "APM_IPS_GT_cross", 4),
        ("IPS_GT", "IPS_GT_resnet", 16),
    ],
)
def test_a_reference_file_is_loaded_by_the_name_of_its_net(
    trained: str, name: str, points: int, build, tmp_path
) -> None:
    source = randomised(build(trained, num_points=points))
    with torch.no_grad():
        source.sam.mask_decoder.mask_tokens.weight.add_(1)  # the file contains SAM's weights
    torch.save(reference_state(source), tmp_path / "epoch_7.pt")
    net, metadata = checkpoint.load(tmp_path / "epoch_7.pt", net_name=name, sam="tiny_vit")
    assert (metadata.sam, metadata.num_points) == ("tiny_vit", points)
    assert metadata.net == {"IPS_GT_resnet": "IPS_GT"}.get(name, name)
    assert metadata.sam_sha256 == source.sam.weights_sha256()
    assert equal({k: v for k, v in source.state_dict().items() if k in net.state_dict()}, net.state_dict())


def test_a_reference_file_requires_the_name_of_its_net(tmp_path: Path, user_error) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with user_error("net-not-named") as caught:
        checkpoint.load(tmp_path / "a.pt")
    assert all(part in str(caught.value) for part in ("a.pt", "--net", "APM_IPS_resnet"))


def test_a_reference_file_of_another_net_is_refused(build, tmp_path: Path, user_error) -> None:
    torch.save(reference_state(build("APM_cross", num_points=4)), tmp_path / "a.pt")
    with user_error("checkpoint-misfit") as caught:
        checkpoint.load(tmp_path / "a.pt", net_name="APM_IPS_cross", sam="tiny_vit")
    assert all(part in str(caught.value) for part in ("a.pt: ", "ips.lin1.weight"))


def test_loading_a_reference_file_does_not_warn_of_random_weights(build, tmp_path: Path) -> None:
    torch.save(reference_state(build("IPS_GT")), tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, metadata = checkpoint.load(tmp_path / "a.pt", net_name="IPS_GT", sam="tiny_vit")
    assert metadata.net == "IPS_GT"
