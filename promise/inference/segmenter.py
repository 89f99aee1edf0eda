"""A checkpoint and an image in, a mask out: whole images at once, or prompt by prompt in a session.

Knows no files but the image's, and writes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from promise.data.images import rgb_pixels
from promise.data.inputs import read_picture
from promise.data.transforms.recipes import build_transform
from promise.inference.contours import outlines
from promise.inference.loading import LoadedNet, load_net
from promise.inference.loop import RowPrediction, predict_batch
from promise.inference.postprocess import Postprocess, probability_at
from promise.models.checkpoint import Metadata
from promise.models.promise import Promise
from promise.models.sam.frozen import MULTIMASK
from promise.prompts.file import ImagePrompts, check_prompts
from promise.prompts.source import PromptGroup, stack_prompts
from promise.runtime.errors import UserError
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.workers import default_workers, ordered_map
from promise.types import Batch, Encoded, Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture: TypeAlias = str | Path | npt.NDArray[Any] | Image | Tensor
    Pictures: TypeAlias = list[Any] | tuple[Any, ...]  # of Picture

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Segmentation:
    """What a net says of one image, in the image's own frame: H rows, W columns, (0, 0) the first pixel's centre."""

    mask: npt.NDArray[np.bool_]  # (H, W), True for foreground, postprocessed
    probability: npt.NDArray[np.float32]  # (H, W), in [0, 1]
    iou: float  # SAM's own estimate of the mask's quality
    ious: npt.NDArray[np.float32]  # (3,), of all three multimask masks
    points: npt.NDArray[np.float64]  # (P, 2) x, y that were used
    labels: npt.NDArray[np.int64]  # (P,) 1 foreground, 0 background
    box: npt.NDArray[np.float64] | None  # (4,) x0, y0, x1, y1 that was used
    logits: npt.NDArray[np.float32]  # (4E, 4E) of the decoder: what Session.predict takes as mask
    choice: int  # which of the three multimask masks it is
    seconds: float  # prompting and decoding

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def share(self) -> float:
        """Of the image that the mask covers, in [0, 1]."""
        return self.area / self.mask.size

    def contours(self) -> list[npt.NDArray[np.int32]]:
        """Outlines of all parts and holes, each (N, 2) x, y of the pixels where it turns."""
        return outlines(self.mask)


def load(
    ckpt: str | Path,
    *,
    net: str | None = None,
    sam: str | None = None,
    sam_checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    postprocess: str | None = None,
) -> Segmenter:
    """Load a checkpoint to segment images with.

    Args:
        ckpt: ours (.safetensors), or the original's (.pt, .pth).
        net: which net it holds; the original's files do not say.
        sam: backbone, where the checkpoint does not name it.
        sam_checkpoint: SAM's weight file, where it is not the published one.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``.
        postprocess: as ``promise-eval --postprocess`` takes it, such as ``open:5,fill``; default: what was tuned into
            the checkpoint, else none.

    Raises:
        UserError: files, names or a device that cannot be used.
    """
    if postprocess not in (None, "default"):
        Postprocess.parse(postprocess or "")  # before the slow part
    return Segmenter(
        load_net(
            ckpt,
            net=net,
            sam=sam,
            sam_checkpoint=sam_checkpoint,
            device=device,
            precision=precision,
            postprocess=postprocess,
        )
    )


class Segmenter:
    """A net on its device, with its pixels and its postprocessing."""

    def __init__(self, loaded: LoadedNet) -> None:
        self.net: Promise = loaded.net.eval()
        self.metadata: Metadata = loaded.metadata
        self.device = loaded.device
        self.postprocess: Postprocess = loaded.postprocess
        self.side = loaded.side
        backbone = self.net.sam.backbone
        self._transform = build_transform(loaded.recipe, image_size=backbone.image_size, pixels=backbone.pixels)

    @property
    def needs_prompts(self) -> bool:
        """Whether prompts must be given, since no part of the net makes them."""
        return self.net.needs_prompts

    @overload
    def predict(self, images: Picture, *, batch_size: int = 8) -> Segmentation: ...

    @overload
    def predict(self, images: Pictures, *, batch_size: int = 8) -> list[Segmentation]: ...

    def predict(self, images: Picture | Pictures, *, batch_size: int = 8) -> Segmentation | list[Segmentation]:
        """Segment an image or several with the net's own prompts.

        Args:
            images: one, or a list: a path (PNG, JPEG, TIFF, BMP; DICOM with pydicom), numpy (H, W), (H, W, 1),
                (H, W, 3) or (H, W, 4) of uint8 or uint16, PIL, or torch (3, H, W) or (H, W, 3) of uint8; any size.
            batch_size: images a step. Rounding of the last bits may hang on it, as in an evaluation.

        Returns:
            One result, or a list of them in the same order.

        Raises:
            UserError: an image that cannot be used, a net that needs prompts, or memory that ran out.
        """
        self._require_own_prompts()
        if isinstance(images, list | tuple):
            return list(self._predict(images, batch_size))
        return next(iter(self._predict([images], 1)))

    def session(self, image: Picture) -> Session:
        """Encode an image once, to prompt it as often as wanted at the decoder's speed.

        Raises:
            UserError: an image that cannot be used, or memory that ran out.
        """
        prepared, size = self.prepare(image)
        with explain_out_of_memory(1), torch.inference_mode():
            encoded = self.net.encode(prepared[None].to(self.device))
        return Session(self, encoded, size)

    def prepare(self, image: Picture) -> tuple[Tensor, Size]:
        """The net's input (3, S, S) float32, normalised, and the image's (width, height)."""
        pixels = _pixels(image)
        unused = torch.zeros(1, self.side, self.side, dtype=torch.uint8)
        tensor, _ = self._transform(torch.from_numpy(pixels).permute(2, 0, 1), unused)
        return tensor, (pixels.shape[1], pixels.shape[0])

    def batch(self, image: Tensor | Encoded, names: Sequence[str], index: Tensor | None = None) -> Batch:
        """Inputs (B, 3, S, S), or their features, as a batch without truths; ``index`` (B,) are their places."""
        unused = torch.zeros(len(names), 1, self.side, self.side)
        return Batch(image, unused, tuple(names), torch.arange(len(names)) if index is None else index)

    def finish(self, row: RowPrediction, size: Size) -> Segmentation:
        """A prediction in the frame of its image of ``size`` (width, height)."""
        width, height = size
        probability = probability_at(row.logits, height, width)
        used = ImagePrompts.of(row.xy, row.label, row.box, side=self.side, size=size)
        ious = np.full(len(MULTIMASK), row.iou, np.float32) if row.ious is None else row.ious
        return Segmentation(
            mask=self.postprocess(probability),
            probability=probability,
            iou=row.iou,
            ious=ious,
            points=used.xy,
            labels=used.label,
            box=used.box,
            logits=row.logits,
            choice=row.mask_index,
            seconds=row.seconds,
        )

    def _predict(self, images: Sequence[Picture], batch_size: int) -> Iterable[Segmentation]:
        return ordered_map(lambda found: self.finish(*found), self._rows(images, batch_size), workers=default_workers())

    @torch.inference_mode()
    def _rows(self, images: Sequence[Picture], batch_size: int) -> Iterable[tuple[RowPrediction, Size]]:
        prepared: list[tuple[Tensor, Size]] = []
        for number, one in enumerate(ordered_map(self.prepare, images, workers=default_workers()), start=1):
            prepared.append(one)
            if len(prepared) < batch_size and number < len(images):
                continue
            tensors, sizes = zip(*prepared, strict=True)
            with explain_out_of_memory(batch_size):
                batch = self.batch(self.net.encode(torch.stack(tensors).to(self.device)), [""] * len(sizes))
                yield from zip(
                    predict_batch(self.net, batch, PromptGroup(range(len(sizes)), None), self.device),
                    sizes,
                    strict=True,
                )
            prepared = []

    def _require_own_prompts(self) -> None:
        if self.needs_prompts:
            raise UserError(
                f"{self.metadata.net} places no prompts of its own: give points or a box to session(image).predict(…)."
            )


class Session:
    """One image, encoded, and the prompts that come to it. Made by :meth:`Segmenter.session`."""

    def __init__(self, segmenter: Segmenter, encoded: Encoded, size: Size) -> None:
        self._segmenter = segmenter
        self._encoded = encoded
        self.size = size  # width, height

    def automatic(self) -> Segmentation:
        """The answer to the net's own prompts.

        Raises:
            UserError: the net makes none.
        """
        self._segmenter._require_own_prompts()
        return self._decode(None)

    def predict(
        self,
        points: npt.ArrayLike | Tensor | None = None,
        labels: npt.ArrayLike | Tensor | None = None,
        box: npt.ArrayLike | Tensor | None = None,
        mask: npt.ArrayLike | Tensor | None = None,
        choice: int = 0,
    ) -> Segmentation:
        """The answer to given prompts; without points, box and mask, that to the net's own.

        Args:
            points: (P, 2) x, y in pixels of the image, (0, 0) the centre of the first.
            labels: (P,) 1 foreground, 0 background; default: all foreground.
            box: (4,) x0, y0, x1, y1 in pixels of the image.
            mask: (4E, 4E) logits of an earlier answer, taken as SAM's mask prompt.
            choice: which of SAM's three multimask masks, 0 to 2.

        Raises:
            UserError: prompts of wrong shapes, outside the image, or missing where the net makes none; all told at
                once.
        """
        given = [] if points is None else _plain(points)
        marked = [1] * len(given) if labels is None and isinstance(given, list) else _plain(labels)
        corners = None if box is None else _plain(box)
        wanted = {"size": list(self.size), "points": given, "labels": marked, "box": corners}
        checked, faults = check_prompts(wanted, self.size, self._segmenter.side)
        earlier = None if mask is None else self._mask_prompt(mask, faults)
        if choice not in range(len(MULTIMASK)):
            faults.append(f"choice must be 0, 1 or 2, not {choice!r}")
        if faults or checked is None:
            raise UserError("; ".join(faults) + ".")
        if not len(checked.xy) and box is None and mask is None:
            self._segmenter._require_own_prompts()
            return self._decode(None, choice)
        given_prompts = replace(checked, mask=earlier)
        found = self._decode(stack_prompts([given_prompts], self._segmenter.side), choice)
        return replace(found, points=checked.xy, box=checked.box)

    def _mask_prompt(self, mask: npt.ArrayLike | Tensor, faults: list[str]) -> npt.NDArray[np.float32] | None:
        side = 4 * self._segmenter.net.sam.backbone.embedding_side
        found = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask, np.float32))
        if found.shape != (side, side) or not found.isfinite().all():
            faults.append(
                f"mask must be the ({side}, {side}) finite logits of an earlier answer, not {tuple(found.shape)}"
            )
            return None
        return found.float().cpu().numpy()

    def _decode(self, prompts: Prompts | None, choice: int = 0) -> Segmentation:
        segmenter = self._segmenter
        batch = segmenter.batch(self._encoded, [""])
        row = predict_batch(segmenter.net, batch, PromptGroup([0], prompts, choice), segmenter.device)[0]
        return segmenter.finish(row, self.size)


def _pixels(image: Picture) -> npt.NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, Tensor):
        array = image.cpu().numpy()
        first = array.ndim == 3 and array.shape[0] == 3  # torch's order of dimensions; (3, W, 3) is read so too
        return rgb_pixels(np.moveaxis(array, 0, 2) if first else array)
    return rgb_pixels(image)


def _plain(values: Any) -> Any:
    """Arrays and tensors as lists; what is no array is left to be refused."""
    try:
        return values.tolist() if isinstance(values, Tensor) else np.asarray(values).tolist()
    except ValueError:  # ragged
        return values
