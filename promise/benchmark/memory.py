"""Peak memory of training and evaluation, each measured in a separate process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from promise.benchmark.bench import Bench
from promise.benchmark.config import MEMORY_BATCH_SIZES, PROMPTER_NET, Settings
from promise.benchmark.speed import descend
from promise.runtime.memory import keep_freed_memory, peak_memory


def peaks(settings: Settings) -> list[dict[str, Any]]:
    """Measure the peak memory of a training step from features and of a prediction from pixels.

    Returns:
        Rows with ``work``, ``batch_size`` and ``gib``: resident memory on a CPU, allocated memory on a GPU, ``nan`` if
        the process ran out of memory.
    """
    context = multiprocessing.get_context("spawn")
    rows = []
    for work in ("training", "evaluation"):
        for size in MEMORY_BATCH_SIZES:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_measure, args=(dataclasses.replace(settings, batch_size=size), work, sender)
            )
            process.start()
            sender.close()
            try:
                gib = float(receiver.recv())
            except EOFError:  # the process was killed: out of memory
                gib = float("nan")
            process.join()
            rows.append({"work": work, "batch_size": size, "gib": gib})
    return rows


def _measure(settings: Settings, work: str, sender: Any) -> None:
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as the commands do
    with tempfile.TemporaryDirectory(prefix="promise-bench-") as folder:
        bench = Bench(settings, Path(folder))
        bench.training = work == "training"
        net = bench.net(PROMPTER_NET, bench.precision)
        if bench.training:
            features = bench.features(PROMPTER_NET)
            optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.0, fused=True)
            for _ in range(2):
                descend(bench.predict(PROMPTER_NET, features), bench.mask)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode():
                net(bench.image)
        sender.send(peak_memory(bench.device))
