"""Measure, in one run and by turns, what is fast here against the plain way; knows no flags.

Every comparison runs its variants in turn, again and again, on the same input: a machine that slows down slows all of
them. Quoted are medians; ratios are medians of the turns' ratios.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from promise.benchmark import growth, memory, speed
from promise.benchmark.bench import Bench, Settings
from promise.benchmark.timings import NETS, Comparison, markdown, processor, published_training
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError, unknown_name
from promise.runtime.files import write_json, write_text

__all__ = ["GROWTH", "MEMORY", "PARTS", "Bench", "Settings", "benchmark"]

log = logging.getLogger(__name__)

PARTS: dict[str, Callable[[Bench], Comparison]] = {
    "encoder": speed.encoder,
    **{f"step:{net}": partial(speed.step, name=net) for net in NETS},
    **{f"validation:{net}": partial(speed.validation, name=net) for net in NETS},
    "epoch": speed.epoch,
    "evaluation": speed.evaluation,
    "loader": speed.loader,
    "metrics": speed.metrics,
    "start_up": speed.start_up,
}
# Only when they are asked for.
GROWTH: dict[str, Callable[[Bench], Comparison]] = {
    "growth:images": growth.images,
    "growth:views": growth.views,
    "growth:points": growth.points,
    "growth:batch": growth.batch,
    "growth:size": growth.size,
    "growth:scoring": growth.scoring,
}
MEMORY = "memory"


def benchmark(settings: Settings, *, parts: Sequence[str] = tuple(PARTS), output: Path | None = None) -> str:
    """Measure and write ``bench.json`` and ``bench.md``; returns the Markdown.

    Args:
        settings: what is measured, and how long.
        parts: of :data:`PARTS` and :data:`GROWTH`, and :data:`MEMORY`.
        output: folder to write to.

    Raises:
        UserError: an unknown part, or figures that cannot be right.
    """
    known = {**PARTS, **GROWTH}
    for part in parts:
        if part not in (*known, MEMORY):
            raise unknown_name("part", part, (*known, MEMORY))
    done: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="promise-bench-") as folder:
        bench = Bench(settings, Path(folder))
        for part in dict.fromkeys(parts):
            if part in known:
                log.info("measuring %s", part)
                done.append(known[part](bench))
    _refuse_broken(done)
    peaks = memory.peaks(settings) if MEMORY in parts else []
    record = {
        "settings": {**settings.__dict__, "precision": bench.precision},
        "environment": {**describe_environment(bench.device), "processor": processor()},
        "comparisons": [{"title": c.title, "unit": c.unit, "rows": c.rows} for c in done],
        "published_training": {net: total for net in NETS if (total := published_training(done, net))},
        "memory": peaks,
    }
    text = markdown(record)
    if output is not None:
        write_json(output / "bench.json", record)
        write_text(output / "bench.md", text)
    return text


def _refuse_broken(done: Sequence[Comparison]) -> None:
    broken = [
        f"{c.title}, {name}: {times}"
        for c in done
        for name, times in c.turns.items()
        if not times or not all(math.isfinite(t) and t > 0 for t in times)
    ]
    if broken:
        raise UserError("these figures cannot be right: " + "; ".join(broken))
