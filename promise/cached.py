"""Rows whose features come from a feature space: what stands in for reading, transforming and encoding images.

Joins datasets, the feature cache and a net's ``encode``; knows no net names, no flags.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from promise.config import EvalConfig, TrainConfig
from promise.data.dataset import SegmentationDataset, build_loader, collate, start_worker
from promise.data.images import content_hash
from promise.data.table import Row
from promise.device import tell_memory
from promise.errors import UserError
from promise.feature_cache import (
    DamagedEntry,
    Entry,
    FeatureSpace,
    damage,
    default_folder,
    entry_key,
    free_bytes,
)
from promise.models.promise import Promise
from promise.models.weights import state_sha256
from promise.progress_bar import progress_bar
from promise.transforms import PIXELS_VERSION, build_transform
from promise.types import Batch, Encoded, join

log = logging.getLogger(__name__)

Encode = Callable[[Tensor], Encoded]


@dataclass(frozen=True)
class CachedSample:
    """One row's features, ready to be batched."""

    entry: Entry
    name: str
    index: int


class CachedDataset(Dataset[CachedSample]):
    """The rows of a dataset, with features in place of pixels.

    Items are asked for as the dataset's own: ``(epoch, index)``. With V views, epoch e takes view ``e mod V``: view v
    is what the dataset's augmentation makes of the row in epoch v.
    """

    def __init__(self, dataset: SegmentationDataset, space: FeatureSpace, *, views: int = 1) -> None:
        """Name the entries.

        Args:
            dataset: rows, transform and seed.
            space: where entries lie; its description tells the transform.
            views: V, augmented views of each image; 1 where the transform draws nothing.
        """
        self.dataset = dataset
        self.space = space
        self.views = 1 if dataset.transform.deterministic else views
        drawn = not dataset.transform.deterministic
        self.keys = [
            [entry_key(image, mask, (dataset.seed, view, row.name) if drawn else None) for view in range(self.views)]
            for row, image, mask in ((row, content_hash(row.image), content_hash(row.mask)) for row in dataset.rows)
        ]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> CachedSample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        try:
            entry = self.space.get(self.keys[index][epoch % self.views])
        except DamagedEntry as error:
            raise UserError(f"{error}. Run this again: what is damaged is made again at the start.") from error
        return CachedSample(entry, self.dataset.rows[index].name, index)

    def expect(self, item: tuple[int, int]) -> None:
        """Have an item's files brought into memory; it is asked for soon."""
        epoch, index = item
        self.space.expect(self.keys[index][epoch % self.views])

    def items(self, share: tuple[int, int] = (0, 1)) -> dict[str, tuple[int, int]]:
        """Every entry's key, and the ``(view, index)`` that it is made from; ``(i, n)`` gives the i-th of n shares.

        A picture that stands in several rows is there once. The shares depend on nothing that lies on the disk.
        """
        rows = {key: (view, index) for index, keys in enumerate(self.keys) for view, key in enumerate(keys)}
        return dict(list(rows.items())[share[0] :: share[1]])


def collate_cached(samples: Sequence[CachedSample]) -> Batch:
    """B samples to a batch that holds features instead of pixels."""
    return Batch(
        image=join([Encoded(s.entry.embedding[None], tuple(tap[None] for tap in s.entry.taps)) for s in samples]),
        mask=torch.stack([s.entry.mask for s in samples]),
        name=tuple(s.name for s in samples),
        index=torch.tensor([s.index for s in samples], dtype=torch.int64),
    )


def find_damage(space: FeatureSpace, keys: Collection[str], *, quiet: bool) -> set[str]:
    """Those of the keys whose entry is there but does not hold what was written; each is told."""
    present = sorted(set(keys) - set(space.missing(keys)))
    paths = [(key, path) for key in present for path in space.paths(key)]
    damaged = set()
    with ThreadPoolExecutor() as pool:
        pairs = zip(paths, pool.map(lambda item: damage(item[1]), paths), strict=True)
        bar = progress_bar(pairs, total=len(paths), name="checking features", unit="file", quiet=quiet)
        for (key, _), fault in bar:
            if fault is not None:
                log.warning("%s. It is made again.", fault)
                damaged.add(key)
    return damaged


def fill(
    dataset: CachedDataset,
    encode: Encode,
    *,
    batch_size: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> int:
    """Make the entries that are missing or damaged; may be killed at any moment and called again.

    Args:
        dataset: whose entries.
        encode: (B, 3, S, S) on the CPU → features of a batch.
        batch_size: B.
        workers: loader processes.
        share: (this process, processes): each looks after every n-th.
        quiet: no progress bar.

    Returns:
        How many this process made.
    """
    items = dataset.items(share)
    wanted = {*dataset.space.missing(items), *find_damage(dataset.space, items, quiet=quiet)}
    todo = [(key, item) for key, item in items.items() if key in wanted]
    if not todo:
        return 0
    loader: DataLoader[Any] = DataLoader(
        dataset.dataset,
        batch_size=batch_size,
        sampler=[item for _, item in todo],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    keys = iter(key for key, _ in todo)
    with progress_bar(total=len(todo), name="encoding", unit="image", quiet=quiet) as bar:
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer:
            for batch in loader:
                encoded = encode(batch.image)
                if writing is not None:
                    writing.result()  # a full disk is told here, not lost
                chosen = list(itertools.islice(keys, len(batch)))
                writing = writer.submit(_put_all, dataset.space, chosen, encoded, batch.mask)
                bar.update(len(batch))
            if writing is not None:
                writing.result()
    return len(todo)


def _put_all(space: FeatureSpace, keys: Sequence[str], encoded: Encoded, mask: Tensor) -> None:
    for i, key in enumerate(keys):
        one = Encoded(encoded.embedding[i : i + 1], tuple(tap[i : i + 1] for tap in encoded.taps))
        space.put(key, one, mask[i])


@dataclass(frozen=True)
class CacheSettings:
    """What a run says about cached features."""

    policy: str  # off, eval, all
    folder: Path
    dtype: str = "auto"  # auto, fp32, bf16
    views: int = 1
    workers: int = 2
    batch_size: int = 8
    quiet: bool = False

    @staticmethod
    def of(config: TrainConfig | EvalConfig) -> CacheSettings:
        """A run's settings."""
        return CacheSettings(
            policy=config.cache,
            folder=Path(config.cache_dir).expanduser() if config.cache_dir else default_folder(),
            dtype=config.cache_dtype,
            views=config.cache_views if isinstance(config, TrainConfig) else 1,
            workers=config.workers,
            batch_size=config.batch_size,
            quiet=config.quiet,
        )


@dataclass(frozen=True)
class Crew:
    """The processes of a run."""

    index: int = 0  # this one
    count: int = 1
    wait: Callable[[], None] = lambda: None  # returns when all have come here


ALONE = Crew()

# Of the free disk, what the default may take without being asked.
MODEST_SHARE = 0.1


def serve(
    dataset: SegmentationDataset,
    net: Promise,
    settings: CacheSettings,
    *,
    recipe: str,
    training: bool,
    device: torch.device,
    crew: Crew = ALONE,
) -> tuple[Dataset[Any], Callable[[Any], Batch]]:
    """The dataset to load from and what makes batches of it: with features where the settings want them, else itself.

    Args:
        dataset: the rows.
        net: encodes; its weights on ``device``.
        settings: whether, where and how.
        recipe: name of the dataset's transform.
        training: whether the rows are trained on; others are cached by ``eval`` already.
        device: where images are encoded.
        crew: the processes that share the encoding.

    Raises:
        UserError: ``all`` was asked for and the disk is too small, or SAM's encoder is to be trained.
    """
    plain = dataset, collate
    if settings.policy == "off" or (training and settings.policy != "all"):
        return plain
    if "image_encoder" in net.sam.trained_parts:
        if settings.policy == "all":
            raise UserError(
                "--cache all keeps what a frozen encoder says, but --freeze FZ4 trains it. Use --cache off."
            )
        return plain
    space, size = _space(dataset, net, settings, recipe)
    served = CachedDataset(dataset, space, views=settings.views)
    missing = space.missing(served.items())
    if not _has_room(settings, space, needed=size * len(missing), images=len(missing)):
        crew.wait()  # another process, which looked a moment earlier, may have found room
        return plain
    if training and not dataset.transform.deterministic:
        log.warning(
            "--cache all: training sees %d fixed view%s of each image; augmentation draws nothing new after epoch %d.",
            settings.views,
            "s" * (settings.views > 1),
            settings.views,
        )
    if missing:
        log.info("features of %d images → %s (%.2f GiB)", len(missing), space.folder, size * len(missing) / 2**30)
    written = _fill_or_tell(served, net, settings, device, crew)
    crew.wait()
    return (served, collate_cached) if written and not space.missing(served.items()) else plain


def _fill_or_tell(
    served: CachedDataset, net: Promise, settings: CacheSettings, device: torch.device, crew: Crew
) -> bool:
    """Make what is missing; a folder that cannot be written to costs the cache, or is an error if ``all`` was asked."""
    dtype = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[settings.dtype]

    @torch.inference_mode()
    def encode(image: Tensor) -> Encoded:
        encoded = net.encode(image.to(device, non_blocking=True))
        return encoded if dtype is None else encoded.map(lambda x: x.to(dtype))

    try:
        with tell_memory(settings.batch_size):
            fill(
                served,
                encode,
                batch_size=settings.batch_size,
                workers=settings.workers,
                share=(crew.index, crew.count),
                quiet=settings.quiet,
            )
    except UserError:
        raise
    except OSError as error:  # a full disk, or a folder that may not be written to
        folder = served.space.folder
        wish = f"features cannot be written to {folder} ({error.strerror}): another disk by --cache-dir"
        if settings.policy == "all":
            raise UserError(f"{wish}, or --cache off.") from error
        log.warning("not cached: %s.", wish)
        return False
    return True


def row_loader(
    rows: Sequence[Row],
    net: Promise,
    config: TrainConfig | EvalConfig,
    *,
    recipe: str,
    seed: int,
    device: torch.device,
    training: bool = False,
    crew: Crew = ALONE,
) -> DataLoader[Any]:
    """A loader of rows as a net wants them, from features where the configuration says so.

    Args:
        rows: of a split.
        net: which they are for; its weights on ``device``.
        config: batch size, workers, cache; in training also shuffling and the last batch.
        recipe: name of the transform.
        seed: of the order and of the augmentation.
        device: where the net is.
        training: whether the rows are trained on.
        crew: the processes that share the encoding.
    """
    backbone = net.sam.backbone
    transform = build_transform(recipe, image_size=backbone.image_size, pixels=backbone.pixels)
    dataset, collate_fn = serve(
        SegmentationDataset(rows, transform, seed=seed),
        net,
        CacheSettings.of(config),
        recipe=recipe,
        training=training,
        device=device,
        crew=crew,
    )
    # Features are only copied: on a CPU, worker processes would take the net's cores for it. The system reads ahead.
    cheap = device.type == "cpu" and isinstance(dataset, CachedDataset)
    learning = config if training and isinstance(config, TrainConfig) else None
    return build_loader(
        dataset,
        collate_fn=collate_fn,
        batch_size=config.batch_size,
        shuffle=learning is not None and learning.shuffle,
        seed=seed,
        workers=0 if cheap else config.workers,
        pin_memory=isinstance(config, TrainConfig) and config.pin_memory and device.type == "cuda",
        drop_last=learning is not None and learning.drop_last,
    )


def _space(
    dataset: SegmentationDataset, net: Promise, settings: CacheSettings, recipe: str
) -> tuple[FeatureSpace, int]:
    """The space of a net's features, and the bytes of an entry."""
    backbone, transform, taps = net.sam.backbone, dataset.transform, net.apm is not None
    stored = net.precision if settings.dtype == "auto" else settings.dtype
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
    return FeatureSpace(settings.folder, description, taps=taps), size


def _has_room(settings: CacheSettings, space: FeatureSpace, *, needed: int, images: int) -> bool:
    """Whether the disk holds the features; what was asked for and does not fit is an error, the default steps back."""
    free = free_bytes(space.folder)
    wish = (
        f"features of {images} images want {needed / 2**30:.2f} GiB in {space.folder}, "
        f"where {free / 2**30:.1f} GiB are free"
    )
    if settings.policy == "all":
        if needed > 0.95 * free:
            raise UserError(
                f"{wish}. Choose another disk with --cache-dir, make room with promise-cache prune, or use --cache off."
            )
    elif needed > MODEST_SHARE * free:
        log.info("not cached: %s. Another disk: --cache-dir.", wish)
        return False
    return True
