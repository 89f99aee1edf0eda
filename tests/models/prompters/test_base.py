"""A prompter that predicts a box, a mask prompt and a lesion map, with its own loss: training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from promise.models import registry
from promise.models.prompters.base import Prompter
from promise.models.registry import NetSpec, register
from promise.types import Batch, Encoded, Prediction, Prompted, Prompts


class MapPrompter(Prompter):
    needs_taps = False

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.image_size = image_size

    def forward(self, encoded: Encoded) -> Prompted:
        logits = self.score(encoded.embedding).float()
        corners = torch.tensor([[1.0, 2.0, self.image_size - 3.0, self.image_size - 4.0]])
        masks = nn.functional.interpolate(logits, scale_factor=4.0)
        return Prompted(Prompts(boxes=corners.expand(len(logits), -1), masks=masks), lesion_logits=logits)


def map_loss(prediction: Prediction, batch: Batch) -> Tensor:
    assert prediction.lesion_logits is not None
    target = nn.functional.interpolate(batch.mask, size=prediction.lesion_logits.shape[-2:], mode="area")
    return nn.functional.binary_cross_entropy_with_logits(prediction.lesion_logits, target)


@pytest.fixture
def map_net() -> Iterator[str]:
    spec = NetSpec(
        "APM_IPS_map",
        lambda backbone, _points, _labels: MapPrompter(backbone.embedding_channels, backbone.image_size),
        token_shift=True,
        prompt_loss=map_loss,
    )
    yield register(spec).name
    for table in (registry.NETS, registry._SHORT):
        del table[spec.name]


def test_taps_are_not_computed_for_a_prompter_that_does_not_read_them(map_net: str, build: Callable[..., Any]) -> None:
    net = build(map_net).eval()
    with torch.inference_mode():
        encoded = net.encode(torch.rand(2, 3, 64, 64))
        prediction = net(encoded)
        again = net(encoded, prediction.prompts)
    assert encoded.taps == ()
    assert prediction.prompts.points is None
    assert prediction.lesion_logits.shape == (2, 1, 4, 4)
    assert again.lesion_logits is None
    assert torch.equal(again.mask_logits, prediction.mask_logits)


def test_no_prompts_differ_from_the_prompts_of_the_net(map_net: str, build: Callable[..., Any]) -> None:
    net = build(map_net).eval()
    with torch.inference_mode():
        encoded = net.encode(torch.rand(2, 3, 64, 64))
        automatic, without = net(encoded), net(encoded, Prompts.none(2))
    assert without.prompts.points.xy.shape == (2, 0, 2)
    assert not torch.allclose(without.mask_logits, automatic.mask_logits)
    with pytest.raises(ValueError, match="Prompts"):
        Prompts()


def test_its_loss_is_minimised_and_logged_and_its_prompts_are_read_back_from_a_file(
    map_net: str, tiny_vit: str, phantoms: Path, tmp_path: Path
) -> None:
    from promise.cli.eval import main as evaluate
    from promise.cli.train import main as train

    common = ["--split-csv", str(phantoms), "--device", "cpu", "--precision", "fp32", "--workers", "0", "--quiet"]
    run = tmp_path / "run"
    command = ["--net", map_net, "--sam", tiny_vit, "--epochs", "3", "--batch-size", "2", "--lr", "0.01", "--seed", "1"]
    assert train([*command, *common, "--output", str(run), "--no-tensorboard"]) == 0
    log = pd.read_csv(run / "log.csv")
    assert log["train_loss"].to_numpy() == pytest.approx(
        (log["train_loss_mask"] + log["train_loss_prompts"]).to_numpy()
    )
    assert log["val_loss_prompts"].iloc[-1] < log["val_loss_prompts"].iloc[0]

    for prompts, output in (("auto", "auto"), (f"file:{tmp_path / 'auto' / 'prompts.json'}", "file")):
        arguments = ["--ckpt", str(run / "best.safetensors"), "--prompts", prompts, "--output", str(tmp_path / output)]
        assert evaluate([*arguments, *common]) == 0
    written = json.loads((tmp_path / "auto/prompts.json").read_text())
    assert written["version"] == 2
    first, second = (pd.read_csv(tmp_path / name / "per_image.csv") for name in ("auto", "file"))
    scores = [name for name in first if name.startswith(("native_", "soft_", "reference_"))]
    pd.testing.assert_frame_equal(first[scores], second[scores], check_exact=True)

    for draw in written["draws"]:
        for image in draw["images"]["split"].values():
            image["mask"] = {"shape": [1, 1], "zlib_base64_float32": "eJxjYGBgAAAABAAB"}  # one number
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(written))
    arguments = ["--ckpt", str(run / "best.safetensors"), "--prompts", f"file:{wrong}", "--output", str(tmp_path / "w")]
    assert evaluate([*arguments, *common]) == 1
    assert not (tmp_path / "w").exists()
