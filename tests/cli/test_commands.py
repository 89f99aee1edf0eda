"""All commands: fast help, errors in one line, exit statuses, settings from files and flags."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import promise.cli
from promise.cli import eval as eval_command
from promise.cli import train as train_command
from promise.cli.common import build_parser, gather
from promise.cli.common import run as run_work
from promise.models.registry import NETS
from promise.runtime.settings import read_yaml
from promise.training.config import TrainConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
SHARED = ("argparse_adapter", "common")
COMMANDS = tuple(found.name for found in pkgutil.iter_modules(promise.cli.__path__) if found.name not in SHARED)
HEAVY = (
    "torch",
    "torchvision",
    "accelerate",
    "safetensors",
    "pandas",
    "matplotlib",
    "cv2",
    "segment_anything",
    "starlette",
    "onnx",
    "onnxruntime",
)


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_fast(command: str) -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        done = run(f"promise.cli.{command}", "--help")
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        seconds.append(spent)  # CPU time: wall-clock time depends on other processes
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: promise-{command}")
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; from promise.cli.{command} import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run(code=code).stdout.splitlines()[-1] == "LOADED"


def test_help_shows_every_setting_with_its_default() -> None:
    text = run("promise.cli.train", "--help").stdout
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert re.search(r"--epochs N\s+[^-]*\(default: 30\)", text)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--net", "APM_resnt", "--split-csv", "a.csv"], "'APM_resnt'. Did you mean 'APM_resnet'?"),
        (["--sam", "vit_bb", "--split-csv", "a.csv"], "'vit_bb'. Did you mean 'vit_b'?"),
        (["--config", "{tmp}/bad.yaml"], "learning_rat"),
        (["--config", "{tmp}/absent.yaml"], "absent.yaml"),
        (["--split-csv", "{tmp}/columns.csv", "--device", "cpu"], "mask_name"),
        (["--split-csv", "{tmp}/absent.csv", "--device", "cpu"], "absent.csv"),
        ([], "--split-csv"),
    ],
)
def test_invalid_input_is_one_line_and_status_1(arguments: list[str], fact: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.yaml").write_text("learning_rat: 3\n")
    (tmp_path / "columns.csv").write_text("image_name,train_type,mask_nam\na.png,train,b.png\n")
    if arguments:
        status = train_command.main([a.format(tmp=tmp_path) for a in arguments])
        out, err = capsys.readouterr()
    else:  # as a user starts it; once, since the imports take seconds
        done = run("promise.cli.train")
        status, out, err = done.returncode, done.stdout, done.stderr
    assert status == 1
    assert out == ""
    assert fact in err
    assert err.startswith("promise-train: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("main", [train_command.main, eval_command.main])
@pytest.mark.parametrize(
    "arguments", [["--epoch"], ["--nonsense", "3"], ["--workers", "two"], ["--split", "all"], ["--freeze", "FZ9"]]
)
def test_bad_usage_is_status_2(main, arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "--help." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--spilt-csv", "a.csv"], "unrecognized arguments: --spilt-csv a.csv. Did you mean --split-csv? See"),
        (["--epoch=3"], "unrecognized arguments: --epoch=3. Did you mean --epochs? See"),
        (["--workers", "two"], "argument --workers: invalid int value: 'two'. See"),
    ],
)
def test_bad_usage_is_one_line_with_the_nearest_flag(arguments: list[str], fact: str, capsys) -> None:
    with pytest.raises(SystemExit):
        train_command.main(arguments)
    assert capsys.readouterr().err == f"promise-train: {fact} promise-train --help.\n"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promise.training.run.train", lambda _config, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_command.main(["--split-csv", "a.csv"])


def test_an_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupt(_config: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("promise.training.run.train", interrupt)
    assert train_command.main(["--split-csv", "a.csv"]) == 130
    assert capsys.readouterr().err == "promise-train: interrupted.\n"


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 1e-5\nepochs: 7\nshuffle: false\nsplit_csv: a.csv\n")
    parser = build_parser("promise-train", "", TrainConfig)
    arguments = parser.parse_args(["--config", str(tmp_path / "a.yaml"), "--epochs", "9", "--no-pin-memory"])
    config = gather(arguments, TrainConfig)
    assert (config.lr, config.epochs, config.shuffle, config.pin_memory) == (1e-5, 9, False, False)
    assert config.batch_size == TrainConfig().batch_size


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads(path: Path) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = TrainConfig(**read_yaml(path, TrainConfig))
    assert config.net in NETS
    assert {name: getattr(config, name) for name in written} == written


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (16, {"APM_resnet": 28.19, "APM_cross": 44.3, "IPS_GT": 1.31, "APM_IPS_resnet": 29.50, "SAM": 0}),
        (2, {"IPS_GT": 1.31, "SAM": 0}),
    ],
)
def test_the_list_of_nets_counts_trained_parameters(points: int, expected: dict[str, float], capsys) -> None:
    assert train_command.main(["--list-nets", "--sam", "vit_b", "--num-points", str(points)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= NETS.keys()
    for name, millions in expected.items():
        count = int(re.search(r"\b(\d[\d,]*)   ", lines[name])[1].replace(",", ""))
        assert count / 1e6 == pytest.approx(millions, abs=0.05 if name == "APM_cross" else 0.005), name


def test_flags_with_underscores_are_accepted() -> None:
    parser = build_parser("promise-train", "", TrainConfig)
    parsed = parser.parse_args(["--batch_size", "4", "--split_csv=a_b.csv", "--data-root", "c_d", "--no-drop_last"])
    assert vars(parsed) == {"batch_size": 4, "split_csv": "a_b.csv", "data_root": "c_d", "drop_last": False}


def test_help_shows_defaults_that_are_zero() -> None:
    text = " ".join(build_parser("promise-train", "", TrainConfig).format_help().split())
    assert re.search(r"--warmup-epochs X .*?\(default: 0\.0\)", text)
    assert re.search(r"--early-stopping N .*?\(default: 0\)", text)


def test_a_configuration_of_another_command_is_recognised(tmp_path: Path, capsys) -> None:
    (tmp_path / "train.yaml").write_text("net: IPS_GT\nepochs: 3\nfreeze: FZ0\n")
    assert eval_command.main(["--config", str(tmp_path / "train.yaml")]) == 1
    printed = capsys.readouterr().err
    assert all(fact in printed for fact in ("train.yaml", "promise-train", "epochs, freeze"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_long_lines_or_broken_format(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = importlib.import_module(f"promise.cli.{command}").make_parser().format_help()
    assert max(map(len, text.splitlines())) <= 100
    assert "%%" not in text
    assert "%(" not in text


def _examples() -> list[str]:
    """The commands in the descriptions of the commands: indented lines, continued after a backslash."""
    texts = [importlib.import_module(f"promise.cli.{command}").make_parser().description for command in COMMANDS]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("  promise-") and " > " not in line]


@pytest.mark.parametrize("example", _examples())
def test_examples_in_help_are_parsed(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *arguments = shlex.split(example)
    module = importlib.import_module(f"promise.cli.{command.removeprefix('promise-')}")
    monkeypatch.setattr(module, "_work", lambda _arguments: 0)
    assert module.main(arguments) == 0


def test_every_command_has_an_example() -> None:
    without = {"completion", "train"}  # redirected to files; described in one paragraph
    assert {example.split()[0].removeprefix("promise-") for example in _examples()} >= set(COMMANDS) - without


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_on_a_console_without_unicode(command: str) -> None:
    code = f"import promise.cli.{command} as c, sys; sys.argv = ['x', '--help']; c.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert "usage" in done.stdout


def refuse(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """The single line with which a command refuses its arguments."""
    try:
        status = importlib.import_module(f"promise.cli.{command}").main(arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status in (1, 2), captured
    assert captured.out == ""
    assert captured.err.startswith(f"promise-{command}")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1000
    return captured.err


NUMBERS = {
    "train": ("--weight-decay", "--momentum", "--clip-norm", "--warmup-epochs", "--min-lr", "--lr", "--ema"),
    "predict": ("--review-below",),
    "app": ("--max-megabytes", "--max-megapixels", "--idle-minutes"),
    "cache prune": ("--older-than",),
    "prepare": ("--val-share",),
}
LONG = "9" * 5000


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("command", NUMBERS)
def test_no_decimal_number_is_nan_or_infinite(command: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = command.split()
    for flag in NUMBERS[command]:
        error = refuse(capsys, name, *rest, f"{flag}={number}", *(["--ckpt", "a"] if name == "app" else []))
        assert "finite number" in error
        assert flag.strip("-").replace("-", "_") in error.replace("-", "_")


@pytest.mark.parametrize(
    ("command", "flag", "value", "fact"),
    [
        *((name, "--workers", "100000", "at most 256") for name in ("train", "eval", "predict", "prepare", "validate")),
        ("train", "--num-points", "100000000", "at most 1024"),
        ("eval", "--num-points", "100000000", "at most 1024"),
        ("eval", "--gt-points", "100000+0", "at most 1024 together"),
        ("eval", "--gt-points", f"{LONG}+0", "at most 1024 together"),
        ("eval", "--prompt-seeds", "1000000000", "at most 1000"),
        ("eval", "--clicks", "1000000000", "at most 100"),
        ("eval", "--postprocess", "open:99999", "at most 1023"),
        ("eval", "--postprocess", f"open:{LONG}", "at most 1023"),
        ("train", "--momentum", "-1", "at least 0"),
        ("train", "--seed", "12345678901234567890123", "at most 9223372036854775807"),
        ("eval", "--seed", "12345678901234567890123", "at most 9223372036854775807"),
        ("train", "--seed", LONG, "invalid int value"),
        ("train", "--epochs", "99999999999999999999", "at most 2147483647"),
        ("train", "--cache-views", "1000000000", "at most 1000"),
        ("train", "--point-labels", LONG, "--point-labels"),
        ("train", "--scheduler", f"LR_{LONG}_1e-7", "LR_200_1e-7"),
        ("bench", "--images", "100000000000", "at most 10000"),
        ("phantom", "--size", "1000000", "at most 8192"),
    ],
)
def test_numbers_beyond_all_limits_are_refused_at_once(
    command: str, flag: str, value: str, fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {
        "train": ["--split-csv", "a.csv"],
        "eval": ["--split-csv", "a.csv", "--net", "SAM"],
        "predict": ["a.png", "--ckpt", "a", "--output", str(tmp_path / "out")],
        "prepare": ["folder=a", "--output", str(tmp_path / "out")],
        "validate": ["a.csv"],
        "phantom": ["--output", str(tmp_path / "out")],
    }
    assert fact in refuse(capsys, command, *inputs.get(command, []), f"{flag}={value}")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_an_output_that_cannot_be_created_is_one_line(
    phantoms: Path, save_lesion_net: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = str(save_lesion_net(tmp_path / "best.safetensors"))
    table, image, device = ["--split-csv", str(phantoms)], str(phantoms.parent / "images"), ["--device", "cpu"]
    net = ["--net", "APM_dense", "--sam", "tiny_vit", "--sam-checkpoint", "random"]
    for command, arguments in (
        ("train", [*table, *net, *device, "--quiet"]),
        ("eval", [*table, *device, "--ckpt", ckpt, "--quiet"]),
        ("predict", [image, *device, "--ckpt", ckpt, "--quiet"]),
        ("phantom", ["--count", "1"]),
    ):
        error = refuse(capsys, command, *arguments, "--output", "/proc/x")
        assert "/proc/x" in error
        assert "--output" in error


@pytest.mark.parametrize("command", ["eval", "predict", "export", "app"])
def test_a_run_folder_as_a_checkpoint_names_its_best_one(
    command: str,
    phantoms: Path,
    save_lesion_net: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    best = save_lesion_net(tmp_path / "run/best.safetensors")
    more = {
        "eval": ["--split-csv", str(phantoms), "--quiet"],
        "predict": [str(phantoms.parent / "images"), "--output", str(tmp_path / "out"), "--quiet"],
        "export": ["--output", str(tmp_path / "out"), "--quiet"],
        "app": ["--port", "0", "--quiet"],
    }
    error = refuse(capsys, command, "--ckpt", str(best.parent), *more[command])
    assert f"Did you mean {best}?" in error


def test_a_file_that_may_not_be_read_is_one_line_wherever_it_is_opened(as_other_user) -> None:
    folder, run_as_other = as_other_user
    secret = folder / "secret"
    secret.write_text("")
    secret.chmod(0o000)
    status, error = run_as_other(lambda: run_work("promise-test", lambda: len(secret.read_text())))
    assert (status, error) == (1, f"promise-test: {secret}: permission denied.\n")
