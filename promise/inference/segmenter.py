"""The Python API of inference: load a checkpoint and segment images.

Image files are read; no file is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from promise.data.images import rgb_pixels
from promise.data.inputs import read_input
from promise.data.transforms.recipes import build_transform
from promise.inference.loading import LoadedNet, load_net
from promise.inference.loop import RowPrediction, predict_batch
from promise.inference.postprocess import Postprocess, probability_at
from promise.inference.segmentation import Segmentation
from promise.inference.session import Session
from promise.models.checkpoint import Metadata, require
from promise.models.promise import Promise
from promise.models.prompters.lesions import check_settings
from promise.models.sam.frozen import MULTIMASK
from promise.prompts.sets import ImagePrompts, Size
from promise.prompts.source import PromptGroup
from promise.runtime.device import resolve_device, resolve_precision
from promise.runtime.errors import UserError
from promise.runtime.memory import explain_out_of_memory
from promise.runtime.workers import default_workers, ordered_map
from promise.types import Batch, Encoded

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike: TypeAlias = str | Path | npt.NDArray[Any] | Image | Tensor
    ImageLikes: TypeAlias = list[Any] | tuple[Any, ...]  # of ImageLike


def load(  # noqa: PLR0913 (one keyword for each setting that determines the masks of a net)
    ckpt: str | Path,
    *,
    net: str | None = None,
    sam: str | None = None,
    sam_checkpoint: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    postprocess: str | None = None,
    max_lesions: int | None = None,
    lesion_settings: str | Mapping[str, Any] | None = None,
) -> Segmenter:
    """Load a checkpoint for inference.

    Args:
        ckpt: path of a checkpoint: of ``promise-train`` (.safetensors), or of the reference implementation (.pt, .pth);
            or the name of a bundled checkpoint, such as ``polyp`` (``promise-predict --list-checkpoints``).
        net: name of the net in the file. Required for files of the reference implementation, which do not name it.
        sam: name of the backbone, if the checkpoint does not contain it.
        sam_checkpoint: path of SAM's weight file, if it is not the published one.
        device: ``auto`` (an accelerator if there is one), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto`` (``bf16`` if the device supports it in hardware, else ``fp32``), ``fp32``, ``bf16`` or
            ``fp16``.
        postprocess: postprocessing as ``promise-eval --postprocess`` takes it, such as ``open:5,fill``, or ``none``.
            Default: the one tuned into the checkpoint, else none.
        max_lesions: largest number of lesions that the net prompts in an image. Default: as stored in the checkpoint.
        lesion_settings: changes of the stored lesion settings, such as ``{"threshold": 0.4}``, or the text of
            ``promise-eval --lesion-settings``; see :class:`promise.models.prompters.lesions.LesionSettings`.

    Returns:
        The net on its device, in evaluation mode.

    Raises:
        MissingFileError: the checkpoint does not exist, or no bundled checkpoint has this name.
        UserError: a file, a name, the postprocessing or the device cannot be used, lesion settings are
            unknown or invalid, or are passed for a net that does not find lesions (``net-without-lesions``).

    Examples:
        >>> segmenter = promise.load("runs/mine/best.safetensors")  # doctest: +SKIP
        >>> result = segmenter.predict("image.png")  # doctest: +SKIP
        >>> result.mask.shape, result.fraction  # doctest: +SKIP
    """
    require(ckpt)
    check_load_settings(
        device=str(device), precision=precision, postprocess=postprocess, lesion_settings=lesion_settings
    )
    return Segmenter(
        load_net(
            ckpt,
            net=net,
            sam=sam,
            sam_checkpoint=sam_checkpoint,
            device=device,
            precision=precision,
            postprocess=postprocess,
            max_lesions=max_lesions,
            lesion_settings=lesion_settings,
        )
    )


def check_load_settings(
    *, device: str, precision: str, postprocess: str | None, lesion_settings: str | Mapping[str, Any] | None
) -> None:
    """Report mistakes in settings of :func:`load` before a checkpoint is read; same errors."""
    if postprocess not in (None, "default"):
        Postprocess.parse(postprocess or "")
    check_settings(lesion_settings)
    resolve_precision(precision, resolve_device(device))


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
        own_mask_index: which of SAM's three multimask masks is the net's own output; ``None``: SAM's single mask.
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

    @property
    def own_mask_index(self) -> int | None:
        """Which of SAM's three multimask masks is the net's own output; ``None``: SAM's single mask."""
        lesions = self.net.lesions
        return None if lesions is not None and lesions.output == "single" else 0

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
        self.require_prompter()
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
        prompts = ImagePrompts.of(row.sets, side=self.side, size=size, mask_index=row.mask_index, fuse=row.fuse)
        ious = np.full(len(MULTIMASK), row.iou, np.float32) if row.ious is None else row.ious
        return Segmentation(
            mask=self.postprocess(probability),
            probability=probability,
            iou=row.iou,
            ious=ious,
            prompts=prompts,
            logits=row.logits,
            mask_index=self.own_mask_index if row.mask_index is None else row.mask_index,
            seconds=row.seconds,
            quality=row.quality,
            threshold=self.postprocess.threshold,
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

    def require_prompter(self) -> None:
        """Raise ``UserError`` (``net-without-prompter``) if the net has no prompter."""
        if self.needs_prompts:
            raise UserError(
                f"{self.metadata.net} has no prompter: pass points or a box to session(image).predict(…).",
                code="net-without-prompter",
            )


def _pixels(image: ImageLike) -> npt.NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return read_input(image)
    if isinstance(image, Tensor):
        array = image.cpu().numpy()
        channels_first = array.ndim == 3 and array.shape[0] == 3  # (3, W, 3) is ambiguous and read as channels first
        return rgb_pixels(np.moveaxis(array, 0, 2) if channels_first else array)
    return rgb_pixels(image)
