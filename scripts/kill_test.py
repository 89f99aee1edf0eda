"""Kills runs by SIGKILL at random moments, resumes them, and compares the results with those of unbroken runs.

A run is a forked process, so that a kill costs no start of Python. SAM is the tiny one of the tests, and the images are
phantoms. Exit status 1: a result differs, or a run could not be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from promise.cli import eval as evaluation
from promise.cli import predict, train
from promise.data.phantom import make_phantoms
from promise.features.store import files, find_corruption

ROOT = Path(__file__).parents[1]
FULL, QUICK = (30, 20, 10, 10), (2, 1, 1, 1)
UNEQUAL = ("environment", "output", "peak_memory_gib", "seconds")  # entries that no two runs share


@dataclass(frozen=True)
class Work:
    """Something that can be killed; all functions take the folder of a run."""

    name: str
    start: Callable[[Path], int]  # returns an exit status
    resume: Callable[[Path], int]
    result: Callable[[Path], dict[str, Any]]  # what must be equal


def works(table: Path, checkpoint: Path) -> list[Work]:
    """The four kinds of work on the rows of a table; evaluation and prediction use a checkpoint."""
    common = ["--split-csv", str(table), "--device", "cpu", "--precision", "fp32", "--workers", "0", "--quiet"]
    net = ["--net", "APM_IPS_cross", "--sam", "tiny_vit", "--num-points", "4", "--no-tensorboard", "--seed", "5"]
    training = [*net, *common, "--batch-size", "2", "--ema", "0.9", "--save-every", "0.001"]
    ckpt = ["--ckpt", str(checkpoint)]

    def start_training(folder: Path) -> int:
        return train.main([*training, "--epochs", "4", "--output", str(folder / "run")])

    def resume_training(folder: Path) -> int:
        if not (folder / "run/state/resume.pt").exists():
            return start_training(folder)
        return train.main(["--output", str(folder / "run"), "--resume", "--workers", "0", "--quiet"])

    def cache(folder: Path) -> int:
        more = ["--cache", "all", "--cache-views", "3", "--epochs", "1", "--overwrite"]
        return train.main([*training, *more, "--output", str(folder / "run")])

    def evaluate(folder: Path) -> int:
        more = ["--split", "train", "--output", str(folder / "eval"), "--overwrite"]
        return evaluation.main([*ckpt, *common, *more])

    def segment(folder: Path) -> int:
        more = ["--device", "cpu", "--precision", "fp32", "--batch-size", "2", "--quiet"]
        return predict.main([*ckpt, *more, "--output", str(folder / "masks"), str(table.parent / "images")])

    return [
        Work("training", start_training, resume_training, _trained),
        Work("caching", cache, cache, _cached),
        Work("evaluation", evaluate, evaluate, _evaluated),
        Work("prediction", segment, segment, _segmented),
    ]


def _trained(folder: Path) -> dict[str, Any]:
    weights = {
        f"{name} {entry}": (value.dtype, value.numpy().tobytes())
        for name in ("best", "last")
        for entry, value in safetensors.torch.load_file(folder / f"run/{name}.safetensors").items()
    }
    return {**weights, "log": _same_entries([json.loads(row) for row in _lines(folder / "run/log.jsonl")])}


def _cached(folder: Path) -> dict[str, Any]:
    spaces = sorted(path.parent for path in (folder / "features").glob("*/space.json"))
    entries = [path for space in spaces for path in files(space)]
    faults = [fault for fault in map(find_corruption, entries) if fault is not None]
    return {"faults": faults, **{str(path.relative_to(folder)): path.read_bytes() for path in entries}}


def _evaluated(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "eval/summary.json").read_text(encoding="utf-8"))
    return {"rows": _lines(folder / "eval/per_image.csv"), "summary": _same_entries(summary)}


def _segmented(folder: Path) -> dict[str, Any]:
    paths = [path for path in sorted((folder / "masks").rglob("*.*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): _same_entries(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in paths
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _same_entries(value: Any) -> Any:
    if isinstance(value, list):
        return [_same_entries(item) for item in value]
    if isinstance(value, dict):
        return {key: _same_entries(item) for key, item in value.items() if key not in UNEQUAL}
    return value


def fork(work: Callable[[Path], int], folder: Path) -> int:
    """Start a work in a process of its own; returns its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ["PROMISE_FEATURES"] = str(folder / "features")
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = work(folder)
        finally:
            os._exit(status)
    return pid


def finish(work: Callable[[Path], int], folder: Path) -> float:
    """Run a work to its end; returns its seconds."""
    started = time.monotonic()
    status = os.waitstatus_to_exitcode(os.waitpid(fork(work, folder), 0)[1])
    if status:
        raise RuntimeError(f"exit status {status}:\n{(folder / 'log.txt').read_text()}")
    return time.monotonic() - started


def kill_and_resume(work: Work, folder: Path, seconds: float) -> bool:
    """Start a work, kill it after some seconds, and resume it; returns whether it was still running."""
    folder.mkdir(parents=True)
    pid = fork(work.start, folder)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finish(work.resume, folder)
    return status == -signal.SIGKILL


def main(argv: list[str] | None = None) -> int:
    """Run the test; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ("TRAINING", "CACHING", "EVALUATION", "PREDICTION")
    parser.add_argument("--kills", type=int, nargs=4, metavar=kinds, help=f"default: {FULL}")
    parser.add_argument("--quick", action="store_true", help=f"kills: {QUICK}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    runpy.run_path(str(ROOT / "tests/conftest.py"))["register_tiny_vit"]()
    torch.set_num_threads(1)
    counts = arguments.kills or (QUICK if arguments.quick else FULL)
    moments = random.Random(arguments.seed)
    home = Path(tempfile.mkdtemp(prefix="promise-kill-test-"))
    table = make_phantoms(home, count=12, size=64, seed=3, splits=(0.5, 0.25, 0.25))
    faults = 0
    for work, count in zip(works(table, home / "training/run/best.safetensors"), counts, strict=True):
        unbroken = home / work.name
        unbroken.mkdir()
        seconds = finish(work.start, unbroken)
        expected, killed = work.result(unbroken), 0
        for number in range(count):
            folder = home / f"{work.name}-{number}"
            killed += kill_and_resume(work, folder, moments.uniform(0, seconds))
            found = work.result(folder)
            different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            if different:
                faults += 1
                print(f"{work.name} {number}: {', '.join(different[:5])} differ; see {folder}", flush=True)
            else:
                shutil.rmtree(folder)
        print(f"{date.today()}: {work.name}: {count} runs, {killed} killed within {seconds:.1f} s", flush=True)
    if not faults:
        shutil.rmtree(home)
    print(f"{faults} results differ from the unbroken ones")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
