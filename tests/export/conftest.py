"""Shared by the tests of the export: a checkpoint on a small SAM, and its export to ONNX."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def small_vit(tiny_vit: str) -> Iterator[str]:
    """Name of a backbone with half the blocks of tiny_vit, which halves the time of an export."""
    from promise.models.sam.backbones import BACKBONES, register

    whole = BACKBONES[tiny_vit]

    def build_half() -> Any:
        sam: Any = whole.build()
        sam.image_encoder.blocks = sam.image_encoder.blocks[1:4]  # global, windowed, global
        sam.mask_decoder.transformer.layers = sam.mask_decoder.transformer.layers[:1]
        return sam

    register(dataclasses.replace(whole, name="small_vit", build=build_half, tap_blocks=(1, 2, 3)))
    yield "small_vit"
    del BACKBONES["small_vit"]


@pytest.fixture(scope="session")
def save_checkpoint(
    small_vit: str, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function that writes the checkpoint of an untrained net on small_vit."""
    from promise import checkpoint

    def save(net_name: str, **metadata_fields: Any) -> Path:
        net = build(net_name, sam=small_vit, num_points=2, seed=1)
        path = tmp_path_factory.mktemp("checkpoint") / f"{net_name}.safetensors"
        metadata = checkpoint.Metadata(
            net_name, small_vit, 2, net.sam.weights_sha256(), sam_checkpoint="random", **metadata_fields
        )
        checkpoint.save(net, path, metadata)
        return path

    return save


@pytest.fixture(scope="session")
def ckpt(small_vit: str, build: Callable[..., Any], save_checkpoint: Callable[..., Path]) -> Path:
    """Checkpoint of a net with prompter and token shift, and with every step of postprocessing.

    The threshold is the median probability: at 0.5 the masks of an untrained net are empty or full.
    """
    import torch

    net = build("APM_IPS_cross", sam=small_vit, num_points=2, seed=1).eval()
    with torch.no_grad():
        middle = net(torch.zeros(1, 3, 64, 64)).mask_logits.sigmoid().median()
    return save_checkpoint("APM_IPS_cross", postprocess=f"close:3,threshold:{middle:.6f},fill,largest")


@pytest.fixture(scope="session")
def exported(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ONNX export of ``ckpt``."""
    pytest.importorskip("onnxruntime", reason="needs the [export] extra")
    pytest.importorskip("onnxscript", reason="needs the [export] extra")
    from promise.export import ExportConfig, export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that its SAM is random
        return export(ExportConfig(str(ckpt), str(tmp_path_factory.mktemp("exported") / "onnx"), images=2, quiet=True))
