"""Noisy prompts, on which a token shift is trained for a net whose map of lesions is frozen.

At inference the boxes come from the map, with its mistakes, or from a user. Each image therefore has one of four kinds
of prompts, see :data:`SHARES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from promise.models.promise import Promise
from promise.models.prompters.lesions import largest_error
from promise.prompts.sampling import generator_for, jitter_boxes, oracle_boxes, oracle_points
from promise.training.losses import resize_target
from promise.types import Batch, Encoded, Points, Prediction, Prompts, to_preferred_memory_format

# Kind → fraction of the images. Without foreground, an image has points in the background instead of a box.
SHARES = {
    "predicted": 0.4,  # boxes on the map, with the dropout of training; without any, a jittered box
    "box": 0.2,  # the box of the ground truth, jittered
    "points": 0.2,  # 1 to MAX_POINTS points in the foreground
    "click": 0.2,  # a jittered box or points, equally often, and a click at the centre of the largest error
}
MAX_POINTS = 3


@dataclass(frozen=True)
class NoisyDraw:
    """The prompts that are drawn from the ground truth for a batch of B images, and what the net adds to them."""

    prompts: tuple[Prompts, ...]  # B times the prompts of one image
    kinds: tuple[str, ...]  # B keys of SHARES
    target: Tensor  # (B, 1, S, S) ground truth, on the CPU, in which clicks are placed

    def to(self, device: torch.device) -> NoisyDraw:
        """Return a copy with the prompts on a device."""
        return replace(self, prompts=tuple(one.to(device) for one in self.prompts))


def draw_noisy(batch: Batch, *, seed: int, epoch: int) -> NoisyDraw:
    """Draw the prompts of a batch. Those of an image depend only on the seed, its name and the epoch.

    Args:
        batch: with masks on the CPU.
        seed: of the run.
        epoch: prompts differ between epochs.
    """
    prompts, kinds = [], []
    for name, mask in zip(batch.name, batch.mask[:, None], strict=True):
        generator = generator_for(seed, name, epoch)
        kind = str(generator.choice(list(SHARES), p=list(SHARES.values())))
        beside_points = generator.random() < 0.5
        if kind == "points" or (kind == "click" and beside_points) or not (mask > 0.5).any():
            count = int(generator.integers(1, MAX_POINTS + 1))
            prompts.append(Prompts(points=oracle_points(mask, count, [generator], positive=count)))
        else:
            boxes = jitter_boxes(oracle_boxes(mask), [generator], image_size=mask.shape[-1])
            prompts.append(Prompts(boxes=boxes))
        kinds.append(kind)
    return NoisyDraw(tuple(prompts), tuple(kinds), batch.mask)


class NoisyPromptNet(nn.Module):
    """A net that completes noisy prompts and decodes them; with other prompts, the net itself."""

    def __init__(self, net: Promise) -> None:
        """Wrap a net, whose weights stay shared.

        Args:
            net: with a map of lesions and a token shift. In training mode, its prompter uses its dropout.
        """
        super().__init__()
        self.net = net

    def forward(self, image: Tensor | Encoded, prompts: NoisyDraw | Prompts | None = None) -> Prediction:
        """Encode and decode; the masks of noisy prompts do not include the map of lesions.

        Args:
            image: a batch (B, 3, S, S), or its features.
            prompts: of the batch. One prediction has no room for prompts of several kinds: that of noisy prompts has
                none.
        """
        if not isinstance(prompts, NoisyDraw):
            prediction: Prediction = self.net(image, prompts)
            return prediction
        encoded = image if isinstance(image, Encoded) else self.net.encode(image)
        with torch.no_grad():
            completed = self._complete(encoded, prompts)
        torch.clear_autocast_cache()  # in some versions of torch, it keeps weights without gradients
        return self._decode(encoded, completed)

    def _complete(self, encoded: Encoded, draw: NoisyDraw) -> list[Prompts]:
        """The prompts of each image, with the boxes of the net and the clicks."""
        completed = list(draw.prompts)
        predicted = _places(draw, "predicted")
        if predicted:
            chosen = torch.tensor(predicted, device=encoded.embedding.device)
            found = self.net.prompt(encoded.map(lambda x: to_preferred_memory_format(x[chosen]))).prompts
            for number, place in enumerate(predicted):
                own = found.take([number])
                if len(own):
                    completed[place] = own
        clicked = _places(draw, "click")
        if clicked:
            logits = self._decode(encoded, completed, clicked).mask_logits
            targets = resize_target(draw.target[clicked], (logits.shape[-2], logits.shape[-1])) > 0.5
            for place, mask, target in zip(clicked, logits[:, 0] > 0, targets[:, 0], strict=True):
                completed[place] = _add_click(completed[place], mask, target, draw.target.shape[-1])
        return completed

    def _decode(self, encoded: Encoded, prompts: Sequence[Prompts], places: Sequence[int] | None = None) -> Prediction:
        """Masks of the images at some places of the batch, default: all. Prompts of one structure are one batch."""
        groups: dict[object, list[int]] = {}
        for place in range(len(prompts)) if places is None else places:
            one = prompts[place]
            points = None if one.points is None else one.points.xy.shape[1]
            groups.setdefault((points, one.boxes is None, one.masks is None), []).append(place)
        decoded = [
            self.net.decode(encoded, _join([prompts[place] for place in group], group)).take(group)
            for group in groups.values()
        ]
        order = torch.tensor([place for group in groups.values() for place in group]).argsort()
        logits = torch.cat([one.mask_logits for one in decoded])[order]
        return Prediction(logits, torch.cat([one.iou for one in decoded])[order], Prompts.none(len(order)))


def _places(draw: NoisyDraw, kind: str) -> list[int]:
    return [place for place, one in enumerate(draw.kinds) if one == kind]


def _join(parts: Sequence[Prompts], places: Sequence[int]) -> Prompts:
    """The prompts of several images, which have the same structure, at ascending places of a batch."""

    def cat(values: Sequence[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    xy = cat([None if one.points is None else one.points.xy for one in parts])
    label = cat([None if one.points is None else one.points.label for one in parts])
    boxes, masks = cat([one.boxes for one in parts]), cat([one.masks for one in parts])
    image = torch.repeat_interleave(torch.tensor(places), torch.tensor([len(one) for one in parts]))
    device = next(value.device for value in (xy, boxes, masks) if value is not None)
    return Prompts(None if xy is None or label is None else Points(xy, label), boxes, masks, image.to(device))


def _add_click(prompts: Prompts, mask: Tensor, target: Tensor, image_size: int) -> Prompts:
    """Prompts of one image with a click at the centre of the largest error of a mask (h, w); none if it has none."""
    error = largest_error(mask.cpu().numpy(), target.numpy())
    if error is None:
        return prompts
    xy = (torch.tensor([[[error.x, error.y]]], dtype=torch.float32) + 0.5) * image_size / mask.shape[-1] - 0.5
    click = Points(xy, torch.tensor([[int(error.missed)]])).to(mask.device)
    if prompts.points is not None:
        before = prompts.points
        click = Points(torch.cat((before.xy, click.xy), dim=1), torch.cat((before.label, click.label), dim=1))
    return replace(prompts, points=click)
