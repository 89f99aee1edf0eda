"""The most memory that training and evaluation take, each measured in a process of its own; knows no timings."""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from promise.benchmark.bench import Bench, Settings
from promise.benchmark.speed import descend
from promise.runtime.memory import keep_freed_memory, peak_memory

BATCHES = (1, 8, 16)
NAME = "APM_IPS_resnet"


def peaks(settings: Settings) -> list[dict[str, Any]]:
    """GiB at most, of a training step from features and of evaluating from pixels, at three batch sizes.

    A row: ``work``, ``batch_size``, ``gib`` (resident on a CPU, allocated on a GPU).
    """
    context = multiprocessing.get_context("spawn")
    rows = []
    for work in ("training", "evaluation"):
        for size in BATCHES:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_measure, args=(dataclasses.replace(settings, batch_size=size), work, theirs)
            )
            process.start()
            theirs.close()
            try:
                gib = float(ours.recv())
            except EOFError:  # killed: memory ran out
                gib = float("nan")
            process.join()
            rows.append({"work": work, "batch_size": size, "gib": gib})
    return rows


def _measure(settings: Settings, work: str, answer: Any) -> None:
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as the commands do; this process is the measurement's own
    with tempfile.TemporaryDirectory(prefix="promise-bench-") as folder:
        bench = Bench(settings, Path(folder))
        bench.training = work == "training"
        net = bench.net(NAME, bench.precision)
        if bench.training:
            features = bench.features(NAME)
            optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.0, fused=True)
            for _ in range(2):
                descend(bench.predict(NAME, features), bench.mask)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode():
                net(bench.image)
        answer.send(peak_memory(bench.device))
