"""Predictions row by row, from a net of one number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from promise.inference.loop import predict_draws, predict_rows
from promise.prompts.source import PromptGroup
from promise.types import Batch, Encoded, Points, Prediction, Prompts


class Offset(nn.Module):
    """Logits: the first channel of the image plus a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor, prompts: Prompts | None = None, **decoding: None) -> Prediction:
        assert decoding == {"mask_index": None, "fuse": None}
        return Prediction(image[:, :1] + self.offset, image[:, :1].mean((2, 3)), prompts or Prompts.none(len(image)))


def batch(first: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(first)
    image = torch.randn(count, 3, 4, 4, generator=generator)
    index = torch.arange(first, first + count)
    mask = (torch.rand(count, 1, 4, 4, generator=generator) > 0.5).float()
    return Batch(image, mask, tuple(f"row{i}" for i in index.tolist()), index)


class Counting(Offset):
    """Features are the first channel of the image; counts the encoded images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def encode(self, image: Tensor) -> Encoded:
        self.encoded += len(image)
        return Encoded(image[:, :1])

    def forward(self, image: Tensor | Encoded, prompts: Prompts | None = None, **decoding: None) -> Prediction:
        assert isinstance(image, Encoded)
        return super().forward(image.embedding, prompts, **decoding)


def test_predictions_come_row_by_row_in_order() -> None:
    points = Points(torch.arange(12.0).view(3, 2, 2), torch.tensor([[1, 0]] * 3))
    first, second = batch(0, 3), batch(3, 1)
    prompts = {3: Prompts(points=points), 1: Prompts(boxes=torch.tensor([[1.0, 2, 3, 4]]))}
    rows = list(predict_rows(Offset(), [first, second], draw=lambda b: prompts[len(b)], device=torch.device("cpu")))
    assert [(row.index, row.name) for row in rows] == [(i, f"row{i}") for i in range(4)]
    assert (rows[1].logits == first.image[1, 0].numpy()).all()
    assert rows[1].iou == pytest.approx(first.image[1, 0].mean().item(), abs=1e-6)
    assert rows[1].xy.tolist() == [[4, 5], [6, 7]]
    assert rows[1].label.tolist() == [1, 0]
    assert rows[1].box is None
    assert rows[3].xy.shape == (0, 2)
    assert rows[3].box.tolist() == [1, 2, 3, 4]


def test_every_draw_decodes_what_was_encoded_once() -> None:
    net, first, second = Counting(), batch(0, 3), batch(3, 1)

    def whole(batch: Batch) -> list[PromptGroup]:
        return [PromptGroup(range(len(batch)), None)]

    def ragged(batch: Batch) -> list[PromptGroup]:
        """The second image of three has two points, the others have one."""
        one = [i for i in range(len(batch)) if i != 1]
        points = Points(torch.ones(len(one), 1, 2), torch.ones(len(one), 1, dtype=torch.int64))
        groups = [PromptGroup(one, Prompts(points))]
        if len(batch) > 1:
            groups.append(PromptGroup([1], Prompts(Points(torch.ones(1, 2, 2), torch.tensor([[1, 0]])))))
        return groups

    rows = list(predict_draws(net, [first, second], sources=[whole, ragged], device=torch.device("cpu")))
    assert net.encoded == 4
    assert [(row.draw, row.index) for row in rows] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (1, 1), (0, 3), (1, 3),
    ]  # fmt: skip
    for row in rows:
        image = first.image[row.index] if row.index < 3 else second.image[0]
        assert (row.logits == image[0].numpy()).all()
        assert row.name == f"row{row.index}"
        assert len(row.xy) == (0 if row.draw == 0 else 2 if row.index == 1 else 1)
