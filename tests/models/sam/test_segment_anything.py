"""The attributes of ``segment_anything``'s classes that its adapter relies on."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

from promise.models.sam import segment_anything
from promise.models.sam.adapter import POINT_LABELS
from promise.models.sam.backbones import SEGMENT_ANYTHING, get_backbone

ATTRIBUTES = [
    "image_encoder.patch_embed",
    "image_encoder.pos_embed",
    "image_encoder.blocks",
    "image_encoder.neck",
    "prompt_encoder.pe_layer.forward_with_coords",
    "prompt_encoder.input_image_size",
    "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.point_embeddings",
    "prompt_encoder.no_mask_embed.weight",
    "prompt_encoder.mask_downscaling",
    "prompt_encoder.get_dense_pe",
    "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.transformer",
    "mask_decoder.output_upscaling",
    "mask_decoder.output_hypernetworks_mlps",
    "mask_decoder.iou_prediction_head",
]


@pytest.fixture(scope="module")
def sam(tiny_vit: str) -> Any:
    return get_backbone(tiny_vit).build()


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_an_attribute_that_the_adapter_reads_exists(path: str, sam: Any) -> None:
    found = sam
    for name in path.split("."):
        assert hasattr(found, name), (
            f"segment_anything's Sam has no attribute {path}: {name} is missing. "
            "Update promise/models/sam/segment_anything.py."
        )
        found = getattr(found, name)


def test_the_list_of_attributes_is_complete() -> None:
    source = inspect.getsource(segment_anything)
    read = set(re.findall(r"\b(?:encoder|prompt_encoder|mask_decoder)\.(\w+)", source))
    assert read == {path.split(".")[1] for path in ATTRIBUTES}
    assert not [name for name in read if name.startswith("_")], "private methods of the package"


def test_the_second_layer_of_the_upscaling_is_a_normalisation(sam: Any) -> None:
    kinds = [type(layer).__name__ for layer in sam.mask_decoder.output_upscaling]
    assert kinds == ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d", "GELU"]


def test_there_are_as_many_embeddings_as_labels(sam: Any) -> None:
    embeddings = SEGMENT_ANYTHING.label_embeddings(sam.prompt_encoder)
    assert [tuple(e.shape) for e in embeddings] == [(1, 32)] * len(POINT_LABELS)


@torch.no_grad()
def test_points_boxes_and_masks_are_embedded_as_by_the_packages_own_prompt_encoder(sam: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    xy, boxes = torch.rand(2, 3, 2, generator=generator) * 64, torch.rand(2, 4, generator=generator) * 64
    masks = torch.randn(2, 1, 16, 16, generator=generator)
    label = torch.tensor([[1, 0, 1], [0, 0, 1]])
    sparse, dense = sam.prompt_encoder((xy, label), boxes, masks)
    embeddings = torch.cat(SEGMENT_ANYTHING.label_embeddings(sam.prompt_encoder))  # of -1, 0, 1, 2, 3
    points = SEGMENT_ANYTHING.position(sam.prompt_encoder, xy + 0.5) + embeddings[label + 1]
    corners = SEGMENT_ANYTHING.position(sam.prompt_encoder, boxes.reshape(2, 2, 2) + 0.5) + embeddings[3:]
    assert torch.equal(torch.cat((points, corners), dim=1), sparse)
    assert torch.equal(SEGMENT_ANYTHING.mask_embedding(sam.prompt_encoder, masks), dense)
