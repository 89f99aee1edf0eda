"""promise-export from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from promise.cli import export as command
from promise.export import Exported

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


def test_settings_reach_the_recipe_and_figures_are_printed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given = []

    def export(settings: object) -> Exported:
        given.append(settings)
        return Exported(Path("out"), MANIFEST)

    monkeypatch.setattr("promise.export.export", export)
    arguments = ["--ckpt", "a.safetensors", "--output", "out", "--format", "torch", "--images", "5", "--overwrite"]
    assert command.main(arguments) == 0
    settings = given[0]
    assert (settings.ckpt, settings.output, settings.format) == ("a.safetensors", "out", "torch")
    assert (settings.images, settings.overwrite, settings.postprocess) == (5, True, None)
    text = capsys.readouterr().out
    for words in (
        "encoder.onnx       12.3       0.123",
        "2.5e-06  (<= 1e-04)",
        "Dice 0.99995  (>= 0.999)",
        "written: out",
    ):
        assert words in text


def test_a_mistake_is_one_line_and_status_1(tmp_path: Path, capsys) -> None:
    assert command.main(["--ckpt", str(tmp_path / "no.safetensors"), "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"promise-export: no checkpoint at {tmp_path / 'no.safetensors'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--ckpt", "a"], ["--ckpt", "a", "--output", "b", "--format", "tflite"]])
def test_bad_usage_is_status_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "promise-export --help" in capsys.readouterr().err
