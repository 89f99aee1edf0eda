"""promise-doctor: what this machine and this installation offer, and what is wrong with them, for bug reports."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promise import __version__
from promise.cli.common import Parser
from promise.runtime.environment import git_commit
from promise.runtime.errors import UserError
from promise.runtime.machine import (
    Findings,
    Probe,
    Problem,
    probe_console,
    probe_folder,
    probe_packages,
    probe_system,
    probe_temporary,
)

if TYPE_CHECKING:
    from promise.models.sam.weights import Weights

DESCRIPTION = """
Report versions, devices, memory, disks, folders, weights and bundled checkpoints, and every problem with what to do
about it. Include the output in bug reports. Nothing is downloaded or changed.

Examples:

  promise-doctor
  promise-doctor --output runs --json

Exit status 1: no command can work, for the problems that are marked with an exclamation mark.
"""
LARGEST_HASHED = 2**29  # bytes; larger weight files are hashed only when a net is loaded


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = Parser("promise-doctor", DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--output", metavar="FOLDER", help="folder in which results will be written (default: the current folder)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status. Unlike other commands it needs no package but PyYAML."""
    arguments = make_parser().parse_args(argv)
    try:
        return _work(arguments)
    except KeyboardInterrupt:
        print("promise-doctor: interrupted.", file=sys.stderr)
        return 130
    except OSError as error:  # of the console: a closed pipe, a full disk
        sys.stdout = None  # Python would fail to flush it
        print(f"promise-doctor: the report cannot be printed ({error.strerror}).", file=sys.stderr)
        return 1


def _work(arguments: argparse.Namespace) -> int:
    findings = examine(None if arguments.output is None else Path(arguments.output))
    print(_json(findings) if arguments.json else _text(findings), flush=True)
    return 0 if findings.can_run else 1


def examine(output: Path | None) -> Findings:
    """Examine this machine and this installation.

    Args:
        output: folder in which results will be written; ``None``: the current folder, which no command needs.
    """
    findings = Findings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        findings.add("installation", _probe_installation)
        findings.add("packages", probe_packages)
        findings.add("machine", probe_system)
        findings.add("console", probe_console)
        advice = "Choose another one with --output."
        folder = functools.partial(probe_folder, "output", output or Path(), advice=advice, fatal=output is not None)
        findings.add("folders", folder)
        findings.add("folders", probe_temporary)
        if findings.can_run:  # else a package that these parts import may be missing
            findings.add("folders", _probe_weights_folder)
            findings.add("folders", _probe_features_folder)
            findings.add("devices", _probe_devices)
            findings.add("weights of SAM", _probe_weights)
            findings.add("bundled checkpoints", _probe_checkpoints)
    return findings


def _probe_installation() -> Probe:
    yield "promise-sam", __version__
    yield "folder", str(Path(__file__).parents[2])
    yield "commit", git_commit()


def _probe_weights_folder() -> Probe:
    from promise.models.sam.weights import CACHE_VARIABLE, cache_folder

    yield from probe_folder("weights", cache_folder(), advice=f"Set {CACHE_VARIABLE} to another one.")


def _probe_features_folder() -> Probe:
    from promise.features.store import HOME_VARIABLE, cache_folder

    folder = cache_folder()
    if folder is not None:  # None: no home folder, which is reported anyway
        yield from probe_folder("features", folder, advice=f"Set {HOME_VARIABLE} to another one.")


def _probe_devices() -> Probe:
    import torch

    from promise.runtime.device import cpu_has_bf16_units, resolve_device, resolve_precision

    instructions = torch.backends.cpu.get_cpu_capability()
    yield "instructions", instructions
    if instructions in ("DEFAULT", "NO AVX"):
        yield Problem("no-avx2", "torch uses neither AVX2 nor other vector instructions: the processor is slow.")
    yield "bf16 in hardware", cpu_has_bf16_units()
    yield "threads", torch.get_num_threads()
    yield "CUDA version of torch", torch.version.cuda
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield "CUDA devices", count
    for index in range(count):
        yield from _probe_gpu(index)
    if not count and Path("/proc/driver/nvidia/version").exists():
        reason = " ".join(str(caught[0].message).split()) if caught else "no device was found"
        text = f"there is an NVIDIA driver, but torch cannot use a GPU ({reason}). Install a torch that fits the driver"
        yield Problem("unusable-gpu", f"{text}, from https://pytorch.org, or use --device cpu.")
    yield "Apple GPU", torch.backends.mps.is_available()
    device = resolve_device("auto")
    yield "--device auto", str(device)
    yield "--precision auto", resolve_precision("auto", device)


def _probe_gpu(index: int) -> Probe:
    """Name, memory and precision of a CUDA device, and whether it computes."""
    import torch

    device = torch.device("cuda", index)
    try:
        free, total = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        yield str(device), f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, capability {major}.{minor}"
        assert int(torch.ones(2, device=device).sum()) == 2
    except Exception as error:  # no kernels for this device, out of memory, a broken driver
        reason = " ".join(str(error).split())[:300]
        text = f"{device} cannot compute ({reason}). Install a torch that supports it, or use --device cpu."
        yield Problem("unusable-gpu", text)


def _probe_weights() -> Probe:
    from promise.models.sam.backbones import BACKBONES
    from promise.models.sam.weights import Weights

    for name, backbone in BACKBONES.items():
        if isinstance(backbone.weights, Weights):
            yield from _probe_file(name, backbone.weights)


def _probe_file(name: str, weights: Weights) -> Probe:
    from promise.models.sam.weights import check_weights, file_sha256, local_weights

    try:
        path = local_weights(weights)
        if path is None:
            yield name, "not on this machine; downloaded when it is used"
            return
        size = path.stat().st_size
        digest = f"SHA-256 {file_sha256(path)}" if size <= LARGEST_HASHED else "verified when it is used"
        yield name, f"{path}, {size / 2**20:.1f} MiB, {digest}"
        if size <= LARGEST_HASHED:
            check_weights(path, weights)
    except ImportError:
        yield name, "not installed"
        text = f"{name} is not installed: pip install 'promise-sam[lite]', or use another --sam."
        yield Problem("missing-extra", text)
    except OSError as error:
        yield Problem("unreadable-weights", f"{name}: {error}. Delete the file; it is downloaded again.")
    except UserError as error:
        yield Problem(error.code, str(error))


def _probe_checkpoints() -> Probe:
    from promise.models.bundled import checkpoint_path, read_cards

    for name, card in read_cards().items():
        try:
            checkpoint_path(name)
        except UserError as error:
            yield name, error.code
            yield Problem(error.code, str(error))
        else:
            yield name, f"SHA-256 {card.sha256}, as its card says"


def _json(findings: Findings) -> str:
    problems = [vars(problem) for problem in findings.problems]
    content = {"version": 1, "can_run": findings.can_run, "problems": problems, "facts": findings.facts}
    return json.dumps(content, indent=2, default=str)


def _text(findings: Findings) -> str:
    lines = []
    for section, facts in findings.facts.items():
        width = max(map(len, facts), default=0)
        lines += [section, *(f"  {name:<{width}}  {_show(value)}" for name, value in facts.items()), ""]
    if not findings.problems:
        return "\n".join([*lines, "no problems found"])
    lines.append("problems" if findings.can_run else "problems (!: no command can work)")
    lines += [f"{'!' if problem.fatal else '-':>3} {problem.text}" for problem in findings.problems]
    return "\n".join(lines)


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
