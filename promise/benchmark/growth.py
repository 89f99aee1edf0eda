"""Growth of the cost with images, views, points, batch size and image size, at three values each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from promise.benchmark.bench import Bench
from promise.benchmark.config import NUM_POINTS, PLAIN_RECIPE, PROMPTER_NET, RANDOM_RECIPE
from promise.benchmark.speed import descend
from promise.benchmark.timings import Comparison, time_interleaved
from promise.data.dataset import build_loader
from promise.data.masks import read_mask
from promise.evaluation.scoring import score
from promise.features.dataset import CachedDataset
from promise.features.loader import CacheOptions, cached_or_raw
from promise.types import Encoded, Points, Prompts, to_preferred_memory_format


def points(bench: Bench) -> Comparison:
    """Training step of ``IPS_GT`` from features, by number of points per image."""
    size = bench.settings.batch_size
    return _steps(bench, "points", {f"{n} points": (size, n) for n in (2, 16, 64)}, unit=f"{size} images")


def batch(bench: Bench) -> Comparison:
    """Training step of ``IPS_GT`` from features, by batch size."""
    return _steps(bench, "batch", {f"{n} images": (n, NUM_POINTS) for n in (1, 8, 16)}, unit="step")


def _steps(bench: Bench, title: str, sizes: dict[str, tuple[int, int]], *, unit: str) -> Comparison:
    bench.training = True
    net, one = bench.net("IPS_GT", bench.precision), bench.features("IPS_GT").map(lambda x: x[:1])
    side = net.sam.backbone.image_size

    def learn(encoded: Encoded, prompts: Points) -> None:
        descend(net.decode(encoded, Prompts(prompts)), bench.mask[:1].expand(len(prompts.xy), -1, -1, -1))
        net.zero_grad(set_to_none=True)

    variants = {}
    for name, (images, count) in sizes.items():
        generator = torch.Generator().manual_seed(0)
        xy = torch.rand(images, count, 2, generator=generator) * side
        prompts = Points(xy, (torch.arange(count) % 2).expand(images, -1)).to(bench.device)
        encoded = one.map(partial(_repeat, times=images))
        variants[name] = partial(learn, encoded, prompts)
    return time_interleaved(f"growth of a step with {title}, IPS_GT", unit, variants, repeats=bench.settings.repeats)


def _repeat(x: Tensor, times: int) -> Tensor:
    return to_preferred_memory_format(x.expand(times, -1, -1, -1))


def images(bench: Bench) -> Comparison:
    """Caching features, by number of images."""
    variants = {f"{n} images": _fill(bench, PLAIN_RECIPE, count=n, views=1) for n in (2, 4, 8)}
    return time_interleaved("growth of caching with images", "all of them", variants, repeats=bench.settings.repeats)


def views(bench: Bench) -> Comparison:
    """Caching features of two images, by number of augmented views."""
    variants = {f"{n} views": _fill(bench, RANDOM_RECIPE, count=2, views=n) for n in (1, 2, 4)}
    return time_interleaved("growth of caching with views", "2 images", variants, repeats=bench.settings.repeats)


def _fill(bench: Bench, recipe: str, *, count: int, views: int) -> Callable[[], None]:
    """Return a function that caches features in a new folder at every call."""
    net, dataset, fresh = (
        bench.net(PROMPTER_NET, bench.precision),
        bench.dataset(recipe, count=count),
        itertools.count(),
    )

    def fill() -> None:
        options = CacheOptions(
            "all", bench.folder / f"{recipe}-{count}-{views}-{next(fresh)}", views=views, workers=0, quiet=True
        )
        cached, _ = cached_or_raw(dataset, net, options, recipe=recipe, training=True, device=bench.device)
        assert isinstance(cached, CachedDataset)

    return fill


def size(bench: Bench) -> Comparison:
    """Reading and augmenting images in one process, by image size."""
    loaders = {
        f"{side} × {side}": build_loader(
            bench.dataset(RANDOM_RECIPE, count=4, size=side), batch_size=4, shuffle=False, seed=0, workers=0
        )
        for side in (256, 512, 1024)
    }
    variants = {name: (lambda loader=loader: list(loader)) for name, loader in loaders.items()}
    return time_interleaved(
        f"growth of loading with image size, {RANDOM_RECIPE}", "image", variants, repeats=bench.settings.repeats, per=4
    )


def scoring(bench: Bench) -> Comparison:
    """Scoring under all three protocols, by image size."""
    side = 4 * bench.net("IPS_GT", "fp32").sam.backbone.embedding_side
    logits = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).numpy()
    targets = {n: read_mask(bench.rows(4, n)[0].mask) for n in (256, 512, 1024)}
    variants = {f"{n} × {n}": partial(score, logits, target) for n, target in targets.items()}
    return time_interleaved("growth of scoring with image size", "image", variants, repeats=bench.settings.repeats)
