"""Runs the parts of a benchmark and writes the results.

The variants of a comparison are interleaved on the same input, so that changes in the speed of the machine affect all
of them. Reported times are medians; reported ratios are medians of the ratios of single repetitions.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from promise.benchmark import growth, memory, speed
from promise.benchmark.bench import Bench
from promise.benchmark.config import NETS, Settings
from promise.benchmark.limits import copy_bandwidth, matrix_peak
from promise.benchmark.timings import Comparison, markdown, processor, published_training
from promise.runtime.environment import describe_environment
from promise.runtime.errors import UserError, unknown_name
from promise.runtime.files import write_json, write_text

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
# Measured on request only.
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
    """Measure parts, write ``bench.json`` and ``bench.md``, and return the Markdown.

    Args:
        settings: workload.
        parts: keys of :data:`PARTS` and :data:`GROWTH`, or :data:`MEMORY`.
        output: output folder; ``None`` to write no files.

    Raises:
        UserError: a part is unknown, or a time is not a positive finite number.
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
    _check_times(done)
    peaks = memory.peaks(settings) if MEMORY in parts else []
    precisions = dict.fromkeys(("fp32", bench.precision))
    flops = {precision: matrix_peak(bench.device, precision) for precision in precisions}
    record = {
        "settings": {**settings.__dict__, "precision": bench.precision},
        "environment": {**describe_environment(bench.device), "processor": processor()},
        "limits": {"flops": flops, "bytes_per_second": copy_bandwidth(bench.device)},
        "comparisons": [{"title": c.title, "unit": c.unit, "rows": _rows(c, flops)} for c in done],
        "published_training": {net: total for net in NETS if (total := published_training(done, net))},
        "memory": peaks,
    }
    text = markdown(record)
    if output is not None:
        write_json(output / "bench.json", record)
        write_text(output / "bench.md", text)
    return text


def _rows(comparison: Comparison, flops: Mapping[str, float]) -> list[dict[str, Any]]:
    """The rows of a comparison, with the share of the matrix peak where operations were counted."""
    shares = comparison.shares(flops)
    return [
        {**row, "share_of_peak": shares[row["variant"]]} if row["variant"] in shares else row for row in comparison.rows
    ]


def _check_times(done: Sequence[Comparison]) -> None:
    invalid = [
        f"{c.title}, {name}: {times}"
        for c in done
        for name, times in c.turns.items()
        if not times or not all(math.isfinite(t) and t > 0 for t in times)
    ]
    if invalid:
        raise UserError("invalid times were measured: " + "; ".join(invalid), code="invalid-times")
