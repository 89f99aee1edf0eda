"""The command promise-app: serving, interrupting, invalid input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promise.cli.app import main

COMMAND = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes of a shell
runpy.run_path(sys.argv[1])["register_tiny_vit"]()
from promise.cli.app import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def ckpt(build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from promise.models.checkpoint import Metadata, save

    net = build("APM_IPS_resnet", num_points=4)
    path = tmp_path_factory.mktemp("app") / "best.safetensors"
    save(net, path, Metadata("APM_IPS_resnet", "tiny_vit", 4, net.sam.weights_sha256(), seed=0))
    return path


def test_it_serves_until_it_is_interrupted(ckpt: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the [app] extra")
    conftest = str(Path(__file__).parents[1] / "conftest.py")
    command = [sys.executable, "-c", COMMAND, conftest, "--ckpt", str(ckpt), "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("promise-app: http://127.0.0.1:"), process.communicate(timeout=60)
            address = line.split()[1]
            with urllib.request.urlopen(f"{address}api/about", timeout=30) as answer:
                about = json.load(answer)
            (net,) = about["nets"]
            assert (net["name"], net["purpose"]) == (ckpt.name, "")
            assert net["about"]["title"].startswith("APM_IPS_resnet · tiny_vit · cpu")
            assert net["about"]["automatic"] is True
            assert about["limits"] == {"bytes": 32 * 2**20, "megabytes": 32}
            assert len(about["samples"]) == 4
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "promise-app: interrupted."
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("promise")] == []


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--ckpt", "{tmp}/absent.safetensors"], "absent.safetensors"),
        (["--ckpt", "{ckpt}", "--samples", "{tmp}/absent"], "absent"),
        (["--ckpt", "{ckpt}", "--images-kept", "0"], "--images-kept"),
        (["--ckpt", "{ckpt}", "--postprocess", "shut"], "'shut'"),
    ],
)
def test_invalid_input_is_one_line_and_status_1(
    arguments: list[str], fact: str, ckpt: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("uvicorn", reason="needs the [app] extra")
    assert main(["--port", "0", *(a.format(tmp=tmp_path, ckpt=ckpt) for a in arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("promise-app: ")
    assert fact in printed.err


def test_a_public_host_causes_a_warning(tmp_path: Path, capsys) -> None:
    pytest.importorskip("uvicorn", reason="needs the [app] extra")
    assert main(["--ckpt", str(tmp_path / "a.safetensors"), "--host", "0.0.0.0", "--port", "0"]) == 1
    printed = capsys.readouterr().err
    assert all(fact in printed for fact in ("0.0.0.0", "token", "not encrypted"))
