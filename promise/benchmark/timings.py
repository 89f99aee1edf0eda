"""Timings by turns, and what follows from them: ratios, the published training by arithmetic, tables; knows no nets."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Comparison:
    """Variants of one thing, timed by turns; the first is what the others are held against."""

    title: str
    unit: str  # of the seconds: "image", "step of 8 images"
    turns: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Name, median seconds, and how many times as fast as the first."""
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


def take_turns(
    title: str, unit: str, variants: Mapping[str, Callable[[], object]], *, repeats: int, per: int = 1
) -> Comparison:
    """Time variants by turns, each after one run that does not count.

    Args:
        title: of the comparison.
        unit: what ``per`` of make one run.
        variants: name → what is timed; the first is the plain way.
        repeats: turns.
        per: units a run; times are divided by it.
    """
    result = Comparison(title, unit, {name: [] for name in variants})
    for turn in range(repeats + 1):
        for name, work in variants.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                result.turns[name].append((time.perf_counter() - started) / per)
    return result


NETS = ("IPS_GT", "APM_IPS_resnet")
TRAIN_IMAGES, VALIDATION_IMAGES, EPOCHS = 1450, 798, 200  # of the published trainings


def published_training(done: Sequence[Comparison], net: str) -> dict[str, float] | None:
    """Hours of the published training by arithmetic from what was measured; ``None`` without its parts.

    Ours: every image encoded once, then every epoch from features.
    """
    found = {c.title.split(",")[0]: c.rows for c in done if c.title.endswith(net) or c.title.startswith("encoder")}
    if not {"encoder", "training step", "validation"} <= found.keys():
        return None
    sizes = next(int(c.unit.split()[0]) for c in done if c.title == f"training step, {net}")
    hours = []
    for row in (0, 1):
        per_image = found["training step"][row]["seconds"] / sizes, found["validation"][row]["seconds"] / sizes
        hours.append(EPOCHS * (TRAIN_IMAGES * per_image[0] + VALIDATION_IMAGES * per_image[1]) / 3600)
    caching = (TRAIN_IMAGES + VALIDATION_IMAGES) * found["encoder"][-1]["seconds"] / 3600
    return {
        "plain": hours[0],
        "cached": hours[1] + caching,
        "caching": caching,
        "ratio": hours[0] / (hours[1] + caching),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def markdown(record: Mapping[str, Any]) -> str:
    """The record as tables."""
    environment, settings = record["environment"], record["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    lines = [
        f"{environment['processor']}, {environment['threads']} threads, {environment['device']}; "
        f"{settings['sam']}, batch {settings['batch_size']}, {settings['repeats']} turns.",
        "",
        packages + ".",
        "",
        "| | variant | seconds | per | per second | times as fast |",
        "|---|---|---:|---|---:|---:|",
    ]
    for comparison in record["comparisons"]:
        for i, row in enumerate(comparison["rows"]):
            title = comparison["title"] if i == 0 else ""
            ratio = f"{row['ratio']:.2f}" if i else ""
            lines.append(
                f"| {title} | {row['variant']} | {row['seconds']:.4g} | {comparison['unit']} | "
                f"{1 / row['seconds']:.3g} | {ratio} |"
            )
    for net, total in record["published_training"].items():
        lines += [
            "",
            f"{EPOCHS} epochs over {TRAIN_IMAGES} + {VALIDATION_IMAGES} images, {net}, by arithmetic from the above: "
            f"{total['plain']:.0f} h the plain way, {total['cached']:.1f} h from features "
            f"({total['caching']:.1f} h of it for making them): {total['ratio']:.0f} times as fast.",
        ]
    if record["memory"]:
        lines += ["", "| work | batch | GiB at most |", "|---|---:|---:|"]
        lines += [f"| {peak['work']} | {peak['batch_size']} | {peak['gib']:.2f} |" for peak in record["memory"]]
    return "\n".join(lines) + "\n"
