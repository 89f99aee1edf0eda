"""Loaders of rows: from pixels, or from stored features of the frozen encoder where that is allowed and fits.

Joins datasets, the feature store and a net's ``encode``; knows no net names, no flags, no configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from promise.data.dataset import SegmentationDataset, build_loader, collate
from promise.data.table import Row
from promise.data.transforms.recipes import PIXELS_VERSION, build_transform
from promise.features.dataset import CachedDataset, collate_cached
from promise.features.fill import fill
from promise.features.store import FeatureSpace, cache_folder, free_bytes
from promise.models.promise import Promise
from promise.models.sam.weights import state_sha256
from promise.runtime.errors import UserError
from promise.runtime.memory import explain_out_of_memory
from promise.types import Batch, Encoded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheOptions:
    """Which features are stored, where and how."""

    policy: str = "eval"  # off, eval, all
    folder: Path = field(default_factory=cache_folder)
    dtype: str = "auto"  # auto, fp32, bf16
    views: int = 1  # augmented views of each training image
    workers: int = 2  # that load what is encoded
    batch_size: int = 8
    quiet: bool = False


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run."""

    index: int = 0  # this one
    count: int = 1
    wait: Callable[[], None] = lambda: None  # returns when all have come here


ALONE = ProcessGroup()

# Of the free disk, what the default may take without being asked.
MODEST_SHARE = 0.1


def cached_or_raw(
    dataset: SegmentationDataset,
    net: Promise,
    options: CacheOptions,
    *,
    recipe: str,
    training: bool,
    device: torch.device,
    processes: ProcessGroup = ALONE,
) -> tuple[Dataset[Any], Callable[[Any], Batch]]:
    """The dataset to load from and what makes batches of it: with features where the options want them, else itself.

    Args:
        dataset: the rows.
        net: encodes; its weights on ``device``.
        options: whether, where and how.
        recipe: name of the dataset's transform.
        training: whether the rows are trained on; others are cached by ``eval`` already.
        device: where images are encoded.
        processes: the processes that share the encoding.

    Raises:
        UserError: ``all`` was asked for and the disk is too small, or SAM's encoder is to be trained.
    """
    plain = dataset, collate
    if options.policy == "off" or (training and options.policy != "all"):
        return plain
    if "image_encoder" in net.sam.trained_parts:
        if options.policy == "all":
            raise UserError(
                "--cache all keeps what a frozen encoder says, but --freeze FZ4 trains it. Use --cache off."
            )
        return plain
    space, size = _space(dataset, net, options, recipe)
    served = CachedDataset(dataset, space, views=options.views)
    missing = space.missing(served.items())
    if not _has_room(options, space, needed=size * len(missing), images=len(missing)):
        processes.wait()  # another process, which looked a moment earlier, may have found room
        return plain
    if training and not dataset.transform.deterministic:
        log.warning(
            "--cache all: training sees %d fixed view%s of each image; augmentation draws nothing new after epoch %d.",
            options.views,
            "s" * (options.views > 1),
            options.views,
        )
    if missing:
        log.info("features of %d images → %s (%.2f GiB)", len(missing), space.folder, size * len(missing) / 2**30)
    written = _fill_or_explain(served, net, options, device, processes)
    processes.wait()
    return (served, collate_cached) if written and not space.missing(served.items()) else plain


def _fill_or_explain(
    served: CachedDataset, net: Promise, options: CacheOptions, device: torch.device, processes: ProcessGroup
) -> bool:
    """Make what is missing; a folder that cannot be written to costs the cache, or is an error if ``all`` was asked."""
    dtype = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]

    @torch.inference_mode()
    def encode(image: Tensor) -> Encoded:
        encoded = net.encode(image.to(device, non_blocking=True))
        return encoded if dtype is None else encoded.map(lambda x: x.to(dtype))

    try:
        with explain_out_of_memory(options.batch_size):
            fill(
                served,
                encode,
                batch_size=options.batch_size,
                workers=options.workers,
                share=(processes.index, processes.count),
                quiet=options.quiet,
            )
    except UserError:
        raise
    except OSError as error:  # a full disk, or a folder that may not be written to
        folder = served.space.folder
        wish = f"features cannot be written to {folder} ({error.strerror}): another disk by --cache-dir"
        if options.policy == "all":
            raise UserError(f"{wish}, or --cache off.") from error
        log.warning("not cached: %s.", wish)
        return False
    return True


@dataclass(frozen=True)
class LoaderOptions:
    """How rows become batches."""

    batch_size: int = 8
    workers: int = 2
    shuffle: bool = False
    drop_last: bool = False
    pin_memory: bool = False  # where there is a GPU


def row_loader(
    rows: Sequence[Row],
    net: Promise,
    options: LoaderOptions,
    cache: CacheOptions,
    *,
    recipe: str,
    seed: int,
    device: torch.device,
    training: bool = False,
    processes: ProcessGroup = ALONE,
) -> DataLoader[Any]:
    """A loader of rows as a net needs them, from stored features where the cache options allow it.

    Args:
        rows: of a split.
        net: which they are for; its weights on ``device``.
        options: batch size, workers, order.
        cache: whether and where features are stored.
        recipe: name of the transform.
        seed: of the order and of the augmentation.
        device: where the net is.
        training: whether the rows are trained on.
        processes: that share the encoding.
    """
    backbone = net.sam.backbone
    transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
    dataset, collate_fn = cached_or_raw(
        SegmentationDataset(rows, transform, seed=seed),
        net,
        cache,
        recipe=recipe,
        training=training,
        device=device,
        processes=processes,
    )
    # Features are only copied: on a CPU, worker processes would take the net's cores for it. The system reads ahead.
    cheap = device.type == "cpu" and isinstance(dataset, CachedDataset)
    return build_loader(
        dataset,
        collate_fn=collate_fn,
        batch_size=options.batch_size,
        shuffle=options.shuffle,
        seed=seed,
        workers=0 if cheap else options.workers,
        pin_memory=options.pin_memory and device.type == "cuda",
        drop_last=options.drop_last,
    )


def _space(dataset: SegmentationDataset, net: Promise, options: CacheOptions, recipe: str) -> tuple[FeatureSpace, int]:
    """The space of a net's features, and the bytes of an entry."""
    backbone, transform, taps = net.sam.backbone, dataset.transform, net.needs_taps
    stored = net.precision if options.dtype == "auto" else options.dtype
    description = {
        "sam": backbone.name,
        "image_encoder_sha256": state_sha256(net.sam.image_encoder.state_dict()),
        "computed_in": net.precision,
        "stored_in": stored,
        "image_size": transform.image_size,
        "pixels": transform.pixels,
        # Without augmentation the recipe's name says nothing more: validation and training rows share a space.
        "recipe": None if transform.deterministic else recipe,
        "pixels_version": PIXELS_VERSION,
    }
    values = backbone.embedding_channels + (sum(backbone.tap_channels) if taps else 0)
    size = values * backbone.embedding_side**2 * (4 if stored == "fp32" else 2) + transform.image_size**2 // 8
    return FeatureSpace(options.folder, description, taps=taps), size


def _has_room(options: CacheOptions, space: FeatureSpace, *, needed: int, images: int) -> bool:
    """Whether the disk holds the features; what was asked for and does not fit is an error, the default steps back."""
    free = free_bytes(space.folder)
    wish = (
        f"features of {images} images want {needed / 2**30:.2f} GiB in {space.folder}, "
        f"where {free / 2**30:.1f} GiB are free"
    )
    if options.policy == "all":
        if needed > 0.95 * free:
            raise UserError(
                f"{wish}. Choose another disk with --cache-dir, make room with promise-cache prune, or use --cache off."
            )
    elif needed > MODEST_SHARE * free:
        log.info("not cached: %s. Another disk: --cache-dir.", wish)
        return False
    return True
