"""Interleaved timing, ratios, estimated time of the published training, and the Markdown report."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from promise.benchmark.config import PUBLISHED

# Parts that the estimate of the published training needs.
ENCODER, STEP, VALIDATION = "encoder", "training step", "validation"


@dataclass(frozen=True)
class Work:
    """What a variant computes."""

    flop: float  # floating-point operations of one unit
    precision: str  # of the matrix products


@dataclass
class Comparison:
    """Times of several variants of a computation. The first variant is the baseline."""

    title: str
    unit: str  # that the times refer to: "image", "8 images"
    turns: dict[str, list[float]] = field(default_factory=dict)  # variant → seconds of each repetition
    part: str = ""  # what is measured, such as "training step"
    net: str | None = None  # if it depends on the net
    images: int = 1  # in one unit
    work: Mapping[str, Work] = field(default_factory=dict)  # variant → its operations, if they were counted

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For each variant its name, median seconds, speed-up over the baseline, and all times."""
        first = next(iter(self.turns.values()))
        return [
            {
                "variant": name,
                "seconds": statistics.median(times),
                "ratio": statistics.median(a / b for a, b in zip(first, times, strict=True)),
                "turns": times,
            }
            for name, times in self.turns.items()
        ]

    def shares(self, peaks: Mapping[str, float]) -> dict[str, float]:
        """For each variant whose operations were counted, its speed divided by the matrix peak of its precision.

        Args:
            peaks: precision → floating-point operations per second of matrix products.
        """
        return {
            row["variant"]: work.flop / row["seconds"] / peaks[work.precision]
            for row in self.rows
            if (work := self.work.get(row["variant"])) is not None and work.precision in peaks
        }


def time_interleaved(
    title: str, unit: str, variants: Mapping[str, Callable[[], object]], *, repeats: int, per: int = 1, **labels: Any
) -> Comparison:
    """Time variants in turn, repeatedly, after one warm-up call of each.

    Args:
        title: name of the comparison.
        unit: unit that the times refer to.
        variants: name → function to time. The first is the baseline.
        repeats: number of timed calls of each variant.
        per: number of units in one call, by which times are divided.
        labels: ``part``, ``net``, ``images`` and ``work`` of the comparison.
    """
    result = Comparison(title, unit, {name: [] for name in variants}, **labels)
    for repetition in range(repeats + 1):
        for name, work in variants.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repetition > 0:
                result.turns[name].append((time.perf_counter() - started) / per)
    return result


def published_training(done: Sequence[Comparison], net: str) -> dict[str, float] | None:
    """Estimate the hours of the published training from measured times.

    ``plain`` is the baseline. ``cached`` encodes every image once and runs every epoch from features; ``caching`` is
    the part of it that encodes. ``ratio`` is ``plain`` divided by ``cached``.

    Returns:
        The four values; ``None`` if encoder, training step or validation were not measured.
    """
    found = {c.part: c for c in done if c.net in (None, net)}
    if not {ENCODER, STEP, VALIDATION} <= found.keys():
        return None

    def per_image(part: str, variant: int) -> float:
        return float(found[part].rows[variant]["seconds"]) / found[part].images

    hours = [
        PUBLISHED.epochs
        * (PUBLISHED.train_images * per_image(STEP, i) + PUBLISHED.validation_images * per_image(VALIDATION, i))
        / 3600
        for i in (0, 1)  # baseline, cached
    ]
    caching = (PUBLISHED.train_images + PUBLISHED.validation_images) * per_image(ENCODER, -1) / 3600
    return {
        "plain": hours[0],
        "cached": hours[1] + caching,
        "caching": caching,
        "ratio": hours[0] / (hours[1] + caching),
    }


def processor() -> str:
    """Return the name of the processor, ``unknown`` if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def limits_text(limits: Mapping[str, Any]) -> str:
    """The measured limits of the machine, as one sentence without its full stop."""
    peaks = ", ".join(f"{value / 1e9:.0f} GFLOP/s in {precision}" for precision, value in limits["flops"].items())
    return f"Matrix products: {peaks}; copies within memory: {limits['bytes_per_second'] / 1e9:.1f} GB/s"


def markdown(record: Mapping[str, Any]) -> str:
    """Format the record of a benchmark as Markdown tables."""
    environment, settings = record["environment"], record["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    lines = [
        f"{environment['processor']}, {environment['threads']} threads, {environment['device']}; "
        f"{settings['sam']}, batch {settings['batch_size']}, {settings['repeats']} repetitions.",
        "",
        packages + ".",
        "",
        limits_text(record["limits"]) + ".",
        "",
        "| | variant | seconds | per | per second | speed-up | share of the matrix peak |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for comparison in record["comparisons"]:
        for i, row in enumerate(comparison["rows"]):
            title = comparison["title"] if i == 0 else ""
            ratio = f"{row['ratio']:.2f}" if i else ""
            share = row.get("share_of_peak")
            lines.append(
                f"| {title} | {row['variant']} | {row['seconds']:.4g} | {comparison['unit']} | "
                f"{1 / row['seconds']:.3g} | {ratio} | {'' if share is None else f'{share:.0%}'} |"
            )
    for net, total in record["published_training"].items():
        lines += [
            "",
            f"{PUBLISHED.epochs} epochs over {PUBLISHED.train_images} + {PUBLISHED.validation_images} images, {net}, "
            f"estimated from the times above: {total['plain']:.0f} h with the baseline, {total['cached']:.1f} h from "
            f"cached features (including {total['caching']:.1f} h to compute them), speed-up {total['ratio']:.0f}.",
        ]
    if record["memory"]:
        lines += ["", "| work | batch | peak GiB |", "|---|---:|---:|"]
        lines += [f"| {peak['work']} | {peak['batch_size']} | {peak['gib']:.2f} |" for peak in record["memory"]]
    return "\n".join(lines) + "\n"
