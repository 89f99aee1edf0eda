"""The Python API of inference: load a checkpoint, segment images, and refine masks with prompts in a session.

Image files are read; no file is written.
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
from promise.data.inputs import read_input
from promise.data.transforms.recipes import build_transform
from promise.inference.contours import outlines
from promise.inference.loading import LoadedNet, load_net
from promise.inference.loop import RowPrediction, predict_batch
from promise.inference.postprocess import Postprocess, probability_at
from promise.models.checkpoint import Metadata
from promise.models.promise import Promise
from promise.models.sam.frozen import MULTIMASK
from promise.prompts.file import ImagePrompts, parse_prompts
from promise.prompts.source import PromptGroup, stack_prompts
from promise.runtime.errors import UserError
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.workers import default_workers, ordered_map
from promise.types import Batch, Encoded, Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike: TypeAlias = str | Path | npt.NDArray[Any] | Image | Tensor
    ImageLikes: TypeAlias = list[Any] | tuple[Any, ...]  # of ImageLike

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Segmentation:
    """The predicted mask of one image, with the prompts that produced it.

    Masks have the size of the image, H rows and W columns. Coordinates are pixels of the image, x before y; (0, 0) is
    the centre of the first pixel.

    Attributes:
        mask: (H, W) bool, True for foreground, after postprocessing.
        probability: (H, W) float32 in [0, 1], before postprocessing.
        iou: SAM's estimate of the IoU of the mask with the object.
        ious: (3,) float32, the estimates for all three multimask masks.
        points: (P, 2) float64, the point prompts that were used.
        labels: (P,) int64, 1 foreground, 0 background.
        box: (4,) float64 x0, y0, x1, y1, the box that was used, or ``None``.
        logits: (4E, 4E) float32 logits of the decoder, which :meth:`Session.predict` accepts as ``mask``. E is the side
            of the image embedding.
        mask_index: which of SAM's three multimask masks this is, 0 to 2.
        seconds: duration of prompting and decoding.
        area: number of foreground pixels.
        fraction: fraction of the image that the mask covers, in [0, 1].
        choice: older name of ``mask_index``.
        share: older name of ``fraction``.
    """

    mask: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float32]
    iou: float
    ious: npt.NDArray[np.float32]
    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    box: npt.NDArray[np.float64] | None
    logits: npt.NDArray[np.float32]
    mask_index: int
    seconds: float

    @property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def fraction(self) -> float:
        """Fraction of the image that the mask covers, in [0, 1]."""
        return self.area / self.mask.size

    @property
    def choice(self) -> int:
        """Older name of :attr:`mask_index`."""
        return self.mask_index

    @property
    def share(self) -> float:
        """Older name of :attr:`fraction`."""
        return self.fraction

    def contours(self) -> list[npt.NDArray[np.int32]]:
        """Outlines of all components and holes of the mask.

        Returns:
            One array (N, 2) per outline: x, y of the border pixels at which the direction changes.
        """
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
    """Load a checkpoint for inference.

    Args:
        ckpt: path of a checkpoint: of ``promise-train`` (.safetensors), or of the reference implementation (.pt, .pth).
        net: name of the net in the file. Required for files of the reference implementation, which do not name it.
        sam: name of the backbone, if the checkpoint does not contain it.
        sam_checkpoint: path of SAM's weight file, if it is not the published one.
        device: ``auto`` (an accelerator if there is one), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto`` (``bf16`` if the device supports it in hardware, else ``fp32``), ``fp32``, ``bf16`` or
            ``fp16``.
        postprocess: postprocessing as ``promise-eval --postprocess`` takes it, such as ``open:5,fill``, or ``none``.
            Default: the one tuned into the checkpoint, else none.

    Returns:
        The net on its device, in evaluation mode.

    Raises:
        MissingFileError: the checkpoint does not exist.
        UserError: a file, a name, the postprocessing or the device cannot be used.

    Examples:
        >>> segmenter = promise.load("runs/mine/best.safetensors")  # doctest: +SKIP
        >>> result = segmenter.predict("image.png")  # doctest: +SKIP
        >>> result.mask.shape, result.fraction  # doctest: +SKIP
    """
    if postprocess not in (None, "default"):
        Postprocess.parse(postprocess or "")  # report mistakes before the weights are loaded
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
    """A net on its device, with its pixel transform and its postprocessing. Created by :func:`load`.

    Attributes:
        net: the net, in evaluation mode.
        metadata: metadata of the checkpoint: names of net and backbone, settings, hashes.
        device: the device of the net.
        postprocess: the postprocessing that is applied at the size of the image.
        side: side of the net's input in pixels.
        mask_side: side of the decoder's logits and of mask prompts, 4E.
        needs_prompts: whether the net has no prompter, so that prompts must be supplied.
    """

    def __init__(self, loaded: LoadedNet) -> None:
        self.net: Promise = loaded.net.eval()
        self.metadata: Metadata = loaded.metadata
        self.device = loaded.device
        self.postprocess: Postprocess = loaded.postprocess
        self.side = loaded.side
        backbone = self.net.sam.backbone
        self.mask_side = loaded.mask_side
        self._transform = build_transform(loaded.recipe, image_size=backbone.image_size, pixels=backbone.pixels)

    @property
    def needs_prompts(self) -> bool:
        """Whether the net has no prompter, so that prompts must be supplied."""
        return self.net.needs_prompts

    @overload
    def predict(self, images: ImageLike, *, batch_size: int = 8) -> Segmentation: ...

    @overload
    def predict(self, images: ImageLikes, *, batch_size: int = 8) -> list[Segmentation]: ...

    def predict(self, images: ImageLike | ImageLikes, *, batch_size: int = 8) -> Segmentation | list[Segmentation]:
        """Segment one or several images with the net's own prompts.

        Args:
            images: one image, or a list of images of any size. An image is a path (PNG, JPEG, TIFF, BMP; DICOM with
                pydicom), a NumPy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16, a PIL image, or
                a torch tensor (3, H, W) or (H, W, 3) of uint8.
            batch_size: number of images per step. As in an evaluation, the last bits of the result may depend on it.

        Returns:
            One result for one image; for a list, a list of results in the same order.

        Raises:
            MissingFileError: an image file does not exist.
            UserError: an image cannot be used, the net has no prompter (``net-without-prompter``), or memory is
                exhausted.
        """
        self._require_prompter()
        if isinstance(images, list | tuple):
            return list(self._predict(images, batch_size))
        return next(iter(self._predict([images], 1)))

    def session(self, image: ImageLike) -> Session:
        """Encode an image once, for any number of prompts. Each prompt then only runs the decoder.

        Args:
            image: an image as :meth:`predict` takes it.

        Returns:
            The session of this image.

        Raises:
            MissingFileError: the image file does not exist.
            UserError: the image cannot be used, or memory is exhausted.
        """
        prepared, size = self.prepare(image)
        with explain_out_of_memory(1), torch.inference_mode():
            encoded = self.net.encode(prepared[None].to(self.device))
        return Session(self, encoded, size)

    def prepare(self, image: ImageLike) -> tuple[Tensor, Size]:
        """Read and transform an image.

        Args:
            image: an image as :meth:`predict` takes it.

        Returns:
            The net's input (3, S, S) float32, normalised, and the (width, height) of the image.
        """
        pixels = _pixels(image)
        unused = torch.zeros(1, self.side, self.side, dtype=torch.uint8)
        tensor, _ = self._transform(torch.from_numpy(pixels).permute(2, 0, 1), unused)
        return tensor, (pixels.shape[1], pixels.shape[0])

    def batch(self, image: Tensor | Encoded, names: Sequence[str], index: Tensor | None = None) -> Batch:
        """Assemble a batch without ground truth.

        Args:
            image: net inputs (B, 3, S, S), or their features.
            names: B names.
            index: (B,) row numbers; default: 0 to B - 1.
        """
        unused = torch.zeros(len(names), 1, self.side, self.side)
        return Batch(image, unused, tuple(names), torch.arange(len(names)) if index is None else index)

    def finish(self, row: RowPrediction, size: Size) -> Segmentation:
        """Convert a prediction to the size of its image, and postprocess the mask.

        Args:
            row: a prediction of this net.
            size: (width, height) of the image.
        """
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
            mask_index=row.mask_index,
            seconds=row.seconds,
        )

    def _predict(self, images: Sequence[ImageLike], batch_size: int) -> Iterable[Segmentation]:
        return ordered_map(lambda pair: self.finish(*pair), self._rows(images, batch_size), workers=default_workers())

    @torch.inference_mode()
    def _rows(self, images: Sequence[ImageLike], batch_size: int) -> Iterable[tuple[RowPrediction, Size]]:
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

    def _require_prompter(self) -> None:
        if self.needs_prompts:
            raise UserError(
                f"{self.metadata.net} has no prompter: pass points or a box to session(image).predict(…).",
                code="net-without-prompter",
            )


class Session:
    """An encoded image that can be prompted repeatedly. Created by :meth:`Segmenter.session`.

    Results do not depend on earlier prompts: the same prompts always produce the same mask.

    Attributes:
        size: (width, height) of the image in pixels.
    """

    def __init__(self, segmenter: Segmenter, encoded: Encoded, size: Size) -> None:
        self._segmenter = segmenter
        self._encoded = encoded
        self.size = size

    def automatic(self) -> Segmentation:
        """Segment the image with the net's own prompts.

        Returns:
            The same result as :meth:`Segmenter.predict` for this image.

        Raises:
            UserError: the net has no prompter (``net-without-prompter``).
        """
        self._segmenter._require_prompter()
        return self._decode(None)

    def predict(
        self,
        points: npt.ArrayLike | Tensor | None = None,
        labels: npt.ArrayLike | Tensor | None = None,
        box: npt.ArrayLike | Tensor | None = None,
        mask: npt.ArrayLike | Tensor | None = None,
        mask_index: int = 0,
        *,
        choice: int | None = None,
    ) -> Segmentation:
        """Segment the image with prompts. Without points, box and mask, the net's own prompts are used.

        Args:
            points: (P, 2) x, y in pixels of the image; (0, 0) is the centre of the first pixel.
            labels: (P,) 1 for foreground, 0 for background; default: all foreground.
            box: (4,) x0, y0, x1, y1 in pixels of the image.
            mask: (4E, 4E) logits of an earlier result, used as SAM's mask prompt.
            mask_index: which of SAM's three multimask masks to return, 0 to 2. The nets are trained on the first.
            choice: older name of ``mask_index``.

        Returns:
            The mask, with the prompts that were used.

        Raises:
            UserError: prompts of wrong shapes, or outside the image (all faults are reported together); no prompts,
                and the net has no prompter (``net-without-prompter``).
        """
        if choice is not None and mask_index not in (0, choice):
            message = f"mask_index is {mask_index} and choice, its older name, is {choice}: pass only mask_index."
            raise UserError(message, code="conflicting-mask-index")
        index = _to_lists(mask_index if choice is None else choice)  # a NumPy integer becomes an int
        xy = [] if points is None else _to_lists(points)
        marks = [1] * len(xy) if labels is None and isinstance(xy, list) else _to_lists(labels)
        corners = None if box is None else _to_lists(box)
        entry = {"size": list(self.size), "points": xy, "labels": marks, "box": corners, "mask_index": index}
        prompts, errors = parse_prompts(entry, self.size, self._segmenter.side)
        logits = None
        try:
            logits = None if mask is None else self._mask_prompt(mask)
        except UserError as error:
            errors.append(error)
        if errors or prompts is None:
            message = "; ".join(str(error) for error in errors) + "."
            raise UserError(message, code="invalid-prompts", errors=errors)
        if not len(prompts.xy) and box is None and mask is None:
            self._segmenter._require_prompter()
            return self._decode(None, prompts.mask_index)
        stacked = stack_prompts([replace(prompts, mask=logits)], self._segmenter.side)
        return replace(self._decode(stacked, prompts.mask_index), points=prompts.xy, box=prompts.box)

    def _mask_prompt(self, mask: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        side = self._segmenter.mask_side
        logits = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask, np.float32))
        if logits.shape != (side, side):
            message = f"mask must be the ({side}, {side}) logits of an earlier result, not {tuple(logits.shape)}"
            raise UserError(message, code="mask-shape-mismatch")
        if not logits.isfinite().all():
            raise UserError("mask must contain finite logits", code="mask-not-finite")
        return logits.float().cpu().numpy()

    def _decode(self, prompts: Prompts | None, mask_index: int = 0) -> Segmentation:
        segmenter = self._segmenter
        batch = segmenter.batch(self._encoded, [""])
        row = predict_batch(segmenter.net, batch, PromptGroup([0], prompts, mask_index), segmenter.device)[0]
        return segmenter.finish(row, self.size)


def _pixels(image: ImageLike) -> npt.NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return read_input(image)
    if isinstance(image, Tensor):
        array = image.cpu().numpy()
        channels_first = array.ndim == 3 and array.shape[0] == 3  # (3, W, 3) is ambiguous and read as channels first
        return rgb_pixels(np.moveaxis(array, 0, 2) if channels_first else array)
    return rgb_pixels(image)


def _to_lists(values: Any) -> Any:
    """Arrays and tensors as lists. Other values are returned unchanged and rejected by the checks that follow."""
    try:
        return values.tolist() if isinstance(values, Tensor) else np.asarray(values).tolist()
    except ValueError:  # ragged
        return values
