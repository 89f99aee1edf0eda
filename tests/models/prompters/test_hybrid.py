"""The hybrid prompter: the map of the dense prompter averaged with that of a CNN on the image."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from promise.features.store import FeatureSpace
from promise.models import checkpoint
from promise.models.promise import Promise
from promise.models.prompters import hybrid
from promise.models.prompters.dense import DensePrompter
from promise.models.prompters.hybrid import HybridPrompter, ImageUNet, change_colours, standardise
from promise.models.registry import list_nets
from promise.runtime.errors import MissingFileError
from promise.training.optim import SLOW, build_optimizer, build_scheduler
from promise.types import Batch, Encoded

pytest.importorskip("timm", reason="needs the [hybrid] extra")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(hybrid.WEIGHTS_PACKAGE) is None, reason="needs the [hybrid] extra"
)


@pytest.fixture(scope="module")
def net(build) -> Promise:
    return build("APM_hybrid", pretrained=False)


def prompter_of(net: Promise) -> HybridPrompter:
    assert isinstance(net.apm, HybridPrompter)
    return net.apm


def save(net: Promise, name: str, folder: Path) -> Path:
    metadata = checkpoint.Metadata(
        net=name, sam="tiny_vit", num_points=16, sam_sha256=net.sam.weights_sha256(), sam_checkpoint="random"
    )
    checkpoint.save(net, folder / f"{name}.safetensors", metadata)
    return folder / f"{name}.safetensors"


def encode(net: Promise, count: int = 2) -> Encoded:
    side = net.sam.backbone.image_size
    image = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net.encode(image)


def test_in_training_there_are_two_maps_and_otherwise_their_mean(net) -> None:
    encoded, apm = encode(net), prompter_of(net)
    net.eval()
    apm.lesions = apm.lesions.__class__(flips=False)
    with torch.no_grad():
        first, second = apm.maps(encoded).split(1, dim=1)
        assert torch.equal(net.lesion_map(encoded), (first + second) / 2)
    net.train()
    assert net(encoded, decode=False).lesion_logits.shape == (2, 2, *first.shape[-2:])


def test_each_map_has_a_loss_of_its_own(net) -> None:
    """The loss of one map reaches the weights of its part only."""
    apm = prompter_of(net.train())
    first, second = apm.maps(encode(net)).split(1, dim=1)
    for loss, part, other in ((first, apm.head.dense, apm.head.image), (second, apm.head.image, apm.head.dense)):
        net.zero_grad()
        loss.sum().backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
        assert all(p.grad is None or not p.grad.any() for p in other.parameters())


def test_images_are_kept_at_four_times_the_side_of_the_embedding(net) -> None:
    encoded = encode(net)
    assert encoded.image is not None
    assert encoded.image.shape == (2, 3, 4 * encoded.embedding.shape[-1], 4 * encoded.embedding.shape[-1])


def test_the_normalisation_of_the_image_does_not_matter(net) -> None:
    encoded, apm = encode(net), prompter_of(net.eval())
    assert encoded.image is not None
    with torch.no_grad():
        expected = apm.head(encoded.embedding, encoded.taps, encoded.image)
        found = apm.head(encoded.embedding, encoded.taps, 3 * encoded.image - 1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_colours_change_per_image_and_channel() -> None:
    torch.manual_seed(0)
    image = standardise(torch.rand(2, 3, 8, 8))
    changed = change_colours(image)
    difference = changed - image
    assert len({round(float(one.mean()), 4) for one in difference.flatten(0, 1)}) == 6
    # A linear function of the channel.
    for before, after in zip(image.flatten(0, 1), changed.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack((before.flatten(), after.flatten())))[0, 1] == pytest.approx(1, abs=1e-5)


def test_a_warp_moves_both_maps(net) -> None:
    """The warp that mirrors left and right equals mirrored features and images."""
    apm, encoded = prompter_of(net.eval()), encode(net)
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, -1, -1)
    with torch.no_grad():
        warped = apm.head(encoded.embedding, encoded.taps, encoded.image, mirror)
        flipped = encoded.map(lambda x: x.flip(-1))
        expected = apm.head(flipped.embedding, flipped.taps, flipped.image)
    torch.testing.assert_close(warped, expected, atol=1e-4, rtol=1e-4)


def test_the_image_is_stored_with_the_features(net, tmp_path) -> None:
    encoded = encode(net, 1)
    space = FeatureSpace(tmp_path, {"made": "by a test"}, taps=True, tap_pooling=2, image=True)
    without = FeatureSpace(tmp_path, {"made": "by a test"}, taps=True, tap_pooling=2)
    space.put("ab", encoded, torch.zeros(1, 8, 8))
    assert space.missing(["ab"]) == []
    for tensor, stored in zip(encoded.tensors, space.get("ab").as_batch().tensors, strict=True):
        assert torch.equal(tensor, stored)
    assert without.get("ab").image is None


def test_the_pretrained_encoder_learns_slowly(net) -> None:
    apm = prompter_of(net)
    optimizer = build_optimizer("adamw", net.parameters(), slow=apm.slow_parameters(), lr=1.0)
    build_scheduler(optimizer, lambda epoch: 0.5, steps_per_epoch=1)
    fast, slow = optimizer.param_groups
    assert (fast["lr"], slow["lr"]) == (0.5, 0.5 * SLOW)
    assert {id(p) for p in slow["params"]} == {id(p) for p in apm.head.image.encoder.parameters()}
    count = sum(p.requires_grad for p in net.parameters())
    assert len(fast["params"]) + len(slow["params"]) == count


@needs_weights
def test_the_encoder_has_the_weights_of_imagenet() -> None:
    """Every weight comes from the package, and the maps are those of timm's network with the same weights."""
    import timm

    torch.manual_seed(0)
    unet = ImageUNet().eval()
    before = {name: value.clone() for name, value in unet.encoder.state_dict().items()}
    hybrid.load_imagenet(unet.encoder, hybrid.find_encoder_weights())
    after = unet.encoder.state_dict()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert all(name.endswith(("num_batches_tracked",)) for name in unchanged)
    plain = timm.create_model(hybrid.ENCODER, features_only=True, pretrained=False).eval()
    plain.load_state_dict({name.replace(".layer.", "."): value for name, value in after.items()})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(unet.encoder(image), plain(image), strict=True):
            torch.testing.assert_close(found, expected)


@needs_weights
def test_a_fresh_net_is_pretrained_and_a_checkpoint_needs_no_weights(build, tmp_path, monkeypatch) -> None:
    fresh, random = build("APM_hybrid"), build("APM_hybrid", pretrained=False)

    def stem(net: Promise) -> Tensor:
        return prompter_of(net).head.image.encoder.state_dict()["conv_stem.weight"]

    assert not torch.equal(stem(fresh), stem(random))
    path = save(fresh, "APM_hybrid", tmp_path)
    monkeypatch.setattr(hybrid, "WEIGHTS_PACKAGE", "a_package_that_is_not_installed")
    loaded, _ = checkpoint.load(path)
    assert torch.equal(stem(loaded), stem(fresh))
    with pytest.raises(MissingFileError, match=r"promise-sam\[hybrid\]") as caught:
        build("APM_hybrid")
    assert caught.value.code == "missing-package"


def test_a_hybrid_starts_from_the_map_of_a_dense_checkpoint(build, tmp_path, user_error) -> None:
    """Its part is loaded, the CNN stays; the reverse is refused."""
    dense, hybrid_net = build("APM_dense"), build("APM_hybrid", pretrained=False)
    first, whole = save(dense, "APM_dense", tmp_path), save(hybrid_net, "APM_hybrid", tmp_path)
    head = prompter_of(hybrid_net).head
    image = {name: value.clone() for name, value in head.image.state_dict().items()}
    with torch.no_grad():
        for parameter in head.dense.parameters():
            parameter.fill_(7)
    checkpoint.check_initial(first, net_name="APM_hybrid", sam="tiny_vit")
    checkpoint.load_initial(hybrid_net, first, net_name="APM_hybrid")
    assert isinstance(dense.apm, DensePrompter)
    expected = dense.apm.head.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in head.dense.state_dict().items())
    assert all(torch.equal(value, image[name]) for name, value in head.image.state_dict().items())
    with user_error("another-net"):
        checkpoint.check_initial(whole, net_name="APM_dense", sam="tiny_vit")


def test_a_dense_checkpoint_that_lacks_an_entry_does_not_start_a_hybrid(build, tmp_path, user_error) -> None:
    path = save(build("APM_dense"), "APM_dense", tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(path)
    del state["apm.head.stem_full.weight"]
    safetensors.torch.save_file(state, path, metadata)
    with user_error("checkpoint-misfit") as caught:
        checkpoint.load_initial(build("APM_hybrid", pretrained=False), path, net_name="APM_hybrid")
    assert "1 missing" in str(caught.value)
    assert "apm.head.dense.stem_full.weight" in str(caught.value)


def test_without_timm_the_other_nets_are_listed(build, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingFileError, match="timm") as caught:
        build("APM_hybrid")
    assert caught.value.code == "missing-package"
    listed = list_nets("tiny_vit")
    assert "APM_dense" in listed
    assert any("APM_hybrid" in line and "promise-sam[hybrid]" in line for line in listed.splitlines())


def test_batches_keep_their_images(net) -> None:
    encoded = encode(net, 3)
    batch = Batch(encoded, torch.zeros(3, 1, 8, 8), ("a", "b", "c"), torch.arange(3))
    taken = batch.take([2, 0]).image
    assert isinstance(taken, Encoded)
    assert taken.image is not None
    assert encoded.image is not None
    assert torch.equal(taken.image, encoded.image[[2, 0]])
