"""Loaders of rows, from pixels or from cached features of the frozen encoder.

Features are cached if the options allow it and the disk has room; otherwise rows are loaded from pixels.
"""

from __future__ import annotations

import logging
import math
import os
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
from promise.runtime.errors import UserError, WriteError
from promise.runtime.memory import explain_out_of_memory, free_gpu_memory
from promise.types import Batch, Encoded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheOptions:
    """Which features are cached, where and how."""

    policy: str = "eval"  # off, eval (rows that are not trained on), all
    folder: Path | None = field(default_factory=cache_folder)  # None: there is none
    dtype: str = "auto"  # auto, fp32, bf16
    views: int = 1  # augmented views per training image
    memory: str = "auto"  # auto: features are kept in the memory of a GPU if they fit; off: they are read from files
    augment: str = "none"  # of the features of training rows; see promise.features.dataset.SYMMETRIES
    workers: int = 2  # loader processes while encoding
    batch_size: int = 8
    quiet: bool = False


@dataclass(frozen=True)
class ProcessGroup:
    """Processes of a distributed run."""

    index: int = 0  # of this process
    count: int = 1
    wait: Callable[[], None] = lambda: None  # barrier


ALONE = ProcessGroup()

# Fraction of the free disk space that policy "eval" and "all" may use.
MAX_FRACTION = {"eval": 0.1, "all": 0.95}
# Fraction of the free memory of a GPU that the features of one split may occupy; the rest is for training.
MAX_GPU_FRACTION = 0.4


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
    """Return a dataset and its collate function: with cached features if possible, else the dataset itself.

    Missing features are computed. A full disk or a folder that is not writable disables the cache with policy ``eval``
    and is an error with ``all``.

    Args:
        dataset: rows as pixels.
        net: net that encodes, on ``device``.
        options: whether, where and how features are cached.
        recipe: name of the transform of the dataset.
        training: whether the rows are trained on. Policy ``eval`` caches other rows only.
        device: device of the net.
        processes: processes that encode together.

    Raises:
        UserError: out of memory while encoding; with policy ``all`` also: the disk is too small, the folder is not
            writable, or the image encoder is trained.
    """
    raw = dataset, collate
    if options.policy == "off" or (training and options.policy != "all"):
        return raw
    if "image_encoder" in net.sam.trained_parts:
        if options.policy == "all":
            raise UserError(
                "--cache all caches features of a frozen encoder, but --freeze FZ4 trains it. Use --cache off.",
                code="cache-of-trained-encoder",
            )
        return raw
    if options.folder is None:
        fault = "no home folder for the cache: choose a folder with --cache-dir or PROMISE_FEATURES"
        if options.policy == "all":
            raise UserError(f"{fault}.", code="cache-not-writable")
        log.warning("features are not cached: %s.", fault)
        return raw
    space, size = _space(dataset, net, options, options.folder, recipe)
    cached = CachedDataset(dataset, space, views=options.views, augment=options.augment if training else "none")
    missing = space.missing(cached.items())
    if not _has_room(options, space, needed=size * len(missing), images=len(missing)):
        processes.wait()  # a process that checked earlier may have found room
        return raw
    if training and not dataset.transform.deterministic:
        log.warning(
            "--cache all: training uses %d fixed view%s of each image. After epoch %d, augmentation repeats.",
            options.views,
            "s" * (options.views > 1),
            options.views,
        )
    if missing:
        log.info(
            "caching features of %d images in %s (%.2f GiB)", len(missing), space.folder, size * len(missing) / 2**30
        )
    written = _fill_or_explain(cached, net, options, device, processes)
    processes.wait()
    if not written or space.missing(cached.items()):
        return raw
    _hold_if_it_fits(cached, options, device, entry_size=size)
    return cached, collate_cached


def _fill_or_explain(
    cached: CachedDataset, net: Promise, options: CacheOptions, device: torch.device, processes: ProcessGroup
) -> bool:
    """Compute missing entries. Return whether the folder is writable; with policy ``all`` it must be."""
    dtype = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]

    @torch.inference_mode()
    def encode(image: Tensor) -> Encoded:
        encoded = net.encode(image.to(device, non_blocking=True))
        return encoded if dtype is None else encoded.map(lambda x: x.to(dtype))

    try:
        with explain_out_of_memory(options.batch_size):
            fill(
                cached,
                encode,
                batch_size=options.batch_size,
                workers=options.workers,
                shard=(processes.index, processes.count),
                quiet=options.quiet,
            )
    except WriteError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        folder = cached.space.folder
        fault = f"features cannot be written to {folder} ({reason}). Choose another disk with --cache-dir"
        if options.policy == "all":
            raise UserError(f"{fault}, or use --cache off.", code="cache-not-writable") from error
        log.warning("features are not cached: %s.", fault)
        return False
    return True


@dataclass(frozen=True)
class LoaderOptions:
    """How rows are batched."""

    batch_size: int = 8
    workers: int = 2
    shuffle: bool = False
    drop_last: bool = False
    pin_memory: bool = False  # on a GPU only


def row_loader(  # noqa: PLR0913
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
    """Return a loader of rows, transformed as the net requires, from cached features where the options allow it.

    Args:
        rows: rows of a split.
        net: net that receives the batches, on ``device``.
        options: batch size, workers, order.
        cache: whether and where features are cached.
        recipe: name of the transform.
        seed: seed of the order and of the augmentation.
        device: device of the net.
        training: whether the rows are trained on.
        processes: processes that encode together.

    Raises:
        UserError: as :func:`cached_or_raw`.
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
    # Features are prefetched by the system. On a CPU, worker processes would compete with the net for cores; features
    # in the memory of a GPU are read by this process only.
    cheap = isinstance(dataset, CachedDataset) and (device.type == "cpu" or dataset.held)
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


def _hold_if_it_fits(cached: CachedDataset, options: CacheOptions, device: torch.device, *, entry_size: int) -> None:
    """Keep features in the memory of a GPU if they fit.

    On a CPU they are read from the files, which are memory-mapped: the system keeps them in memory while there is room.
    """
    # With policy "eval", each run reads its features once or a few times: not worth a copy.
    if options.memory == "off" or options.policy != "all":
        return
    entries = len(cached.items())
    if entry_size * entries <= MAX_GPU_FRACTION * free_gpu_memory(device):
        cached.hold(device, quiet=options.quiet)
        log.info("features of %d images are kept in the memory of %s", entries, device)


def _space(
    dataset: SegmentationDataset, net: Promise, options: CacheOptions, folder: Path, recipe: str
) -> tuple[FeatureSpace, int]:
    """Return the feature space of a net, and the size of an entry in bytes."""
    backbone, transform, taps = net.sam.backbone, dataset.transform, net.needs_taps
    stored = net.precision if options.dtype == "auto" else options.dtype
    description = {
        "sam": backbone.name,
        "image_encoder_sha256": state_sha256(net.sam.image_encoder.state_dict()),
        "computed_in": net.precision,
        "stored_in": stored,
        "image_size": transform.image_size,
        "pixels": transform.pixels,
        # A deterministic recipe is described by the fields above: validation and training rows use one space.
        "recipe": None if transform.deterministic else recipe,
        "pixels_version": PIXELS_VERSION,
    }
    side, pooling = backbone.embedding_side, net.tap_pooling
    values = backbone.embedding_channels * side**2
    values += sum(backbone.tap_channels) * math.ceil(side / pooling) ** 2 if taps else 0
    values += 3 * (4 * side) ** 2 if net.needs_image else 0
    size = values * (4 if stored == "fp32" else 2) + transform.image_size**2 // 8
    return FeatureSpace(folder, description, taps=taps, tap_pooling=pooling, image=net.needs_image), size


def _has_room(options: CacheOptions, space: FeatureSpace, *, needed: int, images: int) -> bool:
    """Return whether the disk has room for the features. With policy ``all``, too little room is an error."""
    free = free_bytes(space.folder)
    if needed <= MAX_FRACTION[options.policy] * free:
        return True
    fault = (
        f"features of {images} images require {needed / 2**30:.2f} GiB in {space.folder}, "
        f"where {free / 2**30:.1f} GiB are free"
    )
    if options.policy == "all":
        raise UserError(
            f"{fault}. Choose another disk with --cache-dir, make room with promise-cache prune, or use --cache off.",
            code="cache-too-large",
        )
    log.info("features are not cached: %s. Choose another disk with --cache-dir.", fault)
    return False
