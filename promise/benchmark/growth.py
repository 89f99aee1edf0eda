"""How cost grows: one series a quantity, at three sizes each; knows no flags and no files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from promise.benchmark.bench import Bench
from promise.benchmark.speed import descend
from promise.benchmark.timings import Comparison, take_turns
from promise.data.dataset import build_loader
from promise.data.images import read_mask
from promise.evaluation.scoring import score
from promise.features.dataset import CachedDataset
from promise.features.loader import CacheOptions, cached_or_raw
from promise.types import Encoded, Points, Prompts, to_preferred_memory_format


def points(bench: Bench) -> Comparison:
    """A training step of ``IPS_GT`` from features, by point prompts an image."""
    size = bench.settings.batch_size
    return _steps(bench, "points", {f"{n} points": (size, n) for n in (2, 16, 64)}, unit=f"{size} images")


def batch(bench: Bench) -> Comparison:
    """A training step of ``IPS_GT`` from features, by images."""
    return _steps(bench, "batch", {f"{n} images": (n, 16) for n in (1, 8, 16)}, unit="step")


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
    return take_turns(f"growth of a step with {title}, IPS_GT", unit, variants, repeats=bench.settings.repeats)


def _repeat(x: Tensor, times: int) -> Tensor:
    return to_preferred_memory_format(x.expand(times, -1, -1, -1))


def images(bench: Bench) -> Comparison:
    """Making features of more and more images."""
    variants = {f"{n} images": _fill(bench, "basic_color", count=n, views=1) for n in (2, 4, 8)}
    return take_turns("growth of caching with images", "all of them", variants, repeats=bench.settings.repeats)


def views(bench: Bench) -> Comparison:
    """Making features of more and more augmented views of two images."""
    variants = {f"{n} views": _fill(bench, "train2_color", count=2, views=n) for n in (1, 2, 4)}
    return take_turns("growth of caching with views", "2 images", variants, repeats=bench.settings.repeats)


def _fill(bench: Bench, recipe: str, *, count: int, views: int) -> Callable[[], None]:
    """Caching into a new folder at every call."""
    net, dataset, fresh = (
        bench.net("APM_IPS_resnet", bench.precision),
        bench.dataset(recipe, count=count),
        itertools.count(),
    )

    def fill() -> None:
        settings = CacheOptions(
            "all", bench.folder / f"{recipe}-{count}-{views}-{next(fresh)}", views=views, workers=0, quiet=True
        )
        served, _ = cached_or_raw(dataset, net, settings, recipe=recipe, training=True, device=bench.device)
        assert isinstance(served, CachedDataset)

    return fill


def size(bench: Bench) -> Comparison:
    """Reading and augmenting pictures of more and more pixels, in one process."""
    loaders = {
        f"{side} × {side}": build_loader(
            bench.dataset("train2_color", count=4, size=side), batch_size=4, shuffle=False, seed=0, workers=0
        )
        for side in (256, 512, 1024)
    }
    variants = {name: (lambda loader=loader: list(loader)) for name, loader in loaders.items()}
    return take_turns(
        "growth of loading with the picture, train2_color", "image", variants, repeats=bench.settings.repeats, per=4
    )


def scoring(bench: Bench) -> Comparison:
    """Scoring pictures of more and more pixels under all three protocols."""
    side = 4 * bench.net("IPS_GT", "fp32").sam.backbone.embedding_side
    logits = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).numpy()
    targets = {n: read_mask(bench.rows(4, n)[0].mask) for n in (256, 512, 1024)}
    variants = {f"{n} × {n}": partial(score, logits, target) for n, target in targets.items()}
    return take_turns("growth of scoring with the picture", "image", variants, repeats=bench.settings.repeats)
