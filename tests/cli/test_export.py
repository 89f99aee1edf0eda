"""The command promise-export."""

from __future__ import annotations

from pathlib import Path

import pytest

from promise.cli import export as command
from promise.export.exporter import Exported

MANIFEST = {
    "format": "onnx",
    "graphs": {"encoder": {"file": "encoder.onnx", "bytes": 12_345_678, "seconds": 0.1234}},
    "pytorch_seconds": 0.25,
    "checks": {
        "pictures": 3,
        "found": [
            {"graph": "encoder", "what": "tap_2", "found": 2.5e-6, "bound": 1e-4, "unit": "difference"},
            {"graph": "image", "what": "masks", "found": 0.99995, "bound": 0.999, "unit": "dice"},
        ],
    },
}


def test_settings_are_passed_on_and_results_are_printed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    configs = []

    def export(settings: object) -> Exported:
        configs.append(settings)
        return Exported(Path("out"), MANIFEST)

    monkeypatch.setattr("promise.export.exporter.export", export)
    arguments = ["--ckpt", "a.safetensors", "--output", "out", "--format", "torch", "--images", "5", "--overwrite"]
    assert command.main(arguments) == 0
    settings = configs[0]
    assert (settings.ckpt, settings.output, settings.format) == ("a.safetensors", "out", "torch")
    assert (settings.images, settings.overwrite, settings.postprocess) == (5, True, None)
    text = capsys.readouterr().out
    for fact in (
        "encoder.onnx       12.3       0.123",
        "2.5e-06  (<= 1e-04)",
        "Dice 0.99995  (>= 0.999)",
        "written: out",
    ):
        assert fact in text


def test_invalid_input_is_one_line_and_status_1(tmp_path: Path, capsys) -> None:
    assert command.main(["--ckpt", str(tmp_path / "no.safetensors"), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("promise-export: ")
    assert str(tmp_path / "no.safetensors") in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--ckpt", "a"], ["--ckpt", "a", "--output", "b", "--format", "tflite"]])
def test_bad_usage_is_status_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "promise-export --help" in capsys.readouterr().err


def test_required_settings_may_be_in_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    configs = []
    monkeypatch.setattr(
        "promise.export.exporter.export", lambda config: configs.append(config) or Exported(Path("out"), MANIFEST)
    )
    (tmp_path / "export.yaml").write_text("ckpt: a.safetensors\nimages: 7\n")
    assert command.main(["--config", str(tmp_path / "export.yaml"), "--output", "out", "--images", "2"]) == 0
    assert (configs[0].ckpt, configs[0].output, configs[0].images) == ("a.safetensors", "out", 2)
    assert command.main(["--config", str(tmp_path / "export.yaml")]) == 1
    assert "--output" in capsys.readouterr().err
