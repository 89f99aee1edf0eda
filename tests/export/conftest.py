"""What the export's tests share: a checkpoint on the small SAM, and its export to ONNX, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def save_checkpoint(build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes the checkpoint of an untrained net on tiny_vit."""
    from promise import checkpoint

    def save(net_name: str, **told: Any) -> Path:
        net = build(net_name, num_points=2, seed=1)
        path = tmp_path_factory.mktemp("checkpoint") / f"{net_name}.safetensors"
        metadata = checkpoint.Metadata(
            net_name, "tiny_vit", 2, net.sam.weights_sha256(), sam_checkpoint="random", **told
        )
        checkpoint.save(net, path, metadata)
        return path

    return save


@pytest.fixture(scope="session")
def ckpt(save_checkpoint: Callable[..., Path]) -> Path:
    """A net with prompter and token shift, whose postprocessing does everything there is."""
    return save_checkpoint("APM_IPS_resnet", postprocess="close:3,threshold:0.45,fill,largest")


@pytest.fixture(scope="session")
def exported(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ONNX export of ``ckpt``."""
    pytest.importorskip("onnxruntime", reason="needs the [export] extra")
    pytest.importorskip("onnxscript", reason="needs the [export] extra")
    from promise.export import Settings, export

    return export(Settings(str(ckpt), str(tmp_path_factory.mktemp("exported") / "onnx"), images=2, quiet=True))
