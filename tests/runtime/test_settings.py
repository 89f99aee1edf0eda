"""Reading, checking and writing of settings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promise.evaluation.config import EvalConfig
from promise.inference.config import PredictConfig
from promise.runtime.errors import MissingFileError
from promise.runtime.settings import check_values, find_out_of_range, read_yaml, write_yaml
from promise.training.config import TrainConfig

Expect = Callable[..., Any]


def read(tmp_path: Path, text: str, kind: type = TrainConfig) -> dict:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    return read_yaml(tmp_path / "a.yaml", kind)


def test_values_have_the_types_of_their_fields(tmp_path: Path) -> None:
    found = read(tmp_path, "lr: 1e-5\nepochs: 7.0\nshuffle: false\nseed: null\nnet: IPS_GT\nclip_norm: 1\n")
    assert found == {"lr": 1e-5, "epochs": 7, "shuffle": False, "seed": None, "net": "IPS_GT", "clip_norm": 1.0}
    assert [type(found[name]) for name in ("lr", "epochs", "clip_norm")] == [float, int, float]
    assert read(tmp_path, "split_csv: a.csv\n", EvalConfig) == {"split_csv": ("a.csv",)}
    assert read(tmp_path, "split_csv: [a.csv, b.csv]\n", EvalConfig) == {"split_csv": ("a.csv", "b.csv")}


def test_all_faults_are_reported_together(tmp_path: Path, user_error: Expect) -> None:
    with user_error("unknown-setting", "unknown-choice", "wrong-type") as caught:
        read(
            tmp_path, "learning_rat: 1\nepochs: many\nshuffle: 'no'\nfreeze: FZ9\nlr:\nbatch_size: 2.5\nworkers: true\n"
        )
    assert sorted(caught.value.codes) == ["unknown-choice", "unknown-setting", *["wrong-type"] * 5]
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.yaml'}: unknown key 'learning_rat'")
    faults = {str(error).partition(":")[0]: str(error) for error in caught.value.errors[1:]}
    assert faults.keys() == {"epochs", "shuffle", "freeze", "lr", "batch_size", "workers"}
    for name, facts in {
        "epochs": ("'many'", "a whole number"),
        "shuffle": ("'no'", "true or false"),
        "freeze": ("'FZ9'", "FZ0", "FZ1", "FZ2", "FZ3", "FZ4"),
        "lr": ("None", "a finite number"),
        "batch_size": ("2.5", "a whole number"),
        "workers": ("True", "a whole number"),
    }.items():
        assert all(fact in faults[name] for fact in facts)
        assert faults[name] in message
    assert "\n" not in message


def test_unknown_key_suggests_the_closest(user_error: Expect) -> None:
    with user_error("unknown-setting") as caught:
        check_values({"batchsize": 3}, TrainConfig, origin="flags")
    assert str(caught.value).startswith("flags: ")
    assert "'batchsize', did you mean 'batch_size'" in str(caught.value)


@pytest.mark.parametrize("text", ["epochs: .inf\n", "epochs: .nan\n", "epochs: [1]\n", "epochs: {a: 1}\n"])
def test_only_whole_numbers_are_integers(text: str, tmp_path: Path, user_error: Expect) -> None:
    with user_error("wrong-type") as caught:
        read(tmp_path, text)
    assert "epochs: " in str(caught.value)
    assert "a whole number" in str(caught.value)


def test_large_seeds_are_exact(tmp_path: Path) -> None:
    assert read(tmp_path, "seed: 9007199254740993\n") == {"seed": 9007199254740993}


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        (b"", "config-not-a-mapping", "NoneType"),
        (b"- a\n- b\n", "config-not-a-mapping", "list"),
        (b"a: b: c\n", "config-not-yaml", "a.yaml"),
        (b"net: \xff\xfe\n", "config-not-utf8", "a.yaml"),
    ],
)
def test_invalid_files_are_rejected(content: bytes, code: str, fact: str, tmp_path: Path, user_error: Expect) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with user_error(code) as caught:
        read_yaml(tmp_path / "a.yaml", TrainConfig)
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path, user_error: Expect) -> None:
    with user_error("missing-config") as caught:
        read_yaml(tmp_path / "absent.yaml", TrainConfig)
    assert isinstance(caught.value, MissingFileError)
    assert "absent.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [TrainConfig(), TrainConfig(lr=1e-5, seed=3, net="APM_cross"), EvalConfig(split_csv=("a", "ä")), EvalConfig()],
)
def test_written_settings_are_read_back(config: TrainConfig | EvalConfig, tmp_path: Path) -> None:
    write_yaml(tmp_path / "b.yaml", config)
    assert type(config)(**read_yaml(tmp_path / "b.yaml", type(config))) == config


def test_configuration_of_another_command_is_recognised(tmp_path: Path, user_error: Expect) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("net: IPS_GT\nepochs: 3\nfreeze: FZ0\n")
    with user_error("config-of-another-command") as caught:
        read_yaml(path, EvalConfig, others={"promise-train": TrainConfig})
    assert "promise-train (it sets epochs, freeze)" in str(caught.value)
    with user_error("unknown-setting"):
        read_yaml(path, EvalConfig)


def test_synonym_of_a_setting_suggests_its_name(tmp_path: Path, user_error: Expect) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("learning_rate: 1e-4\n")
    with user_error("unknown-setting") as caught:
        read_yaml(path, TrainConfig)
    assert "'learning_rate', did you mean 'lr'" in str(caught.value)


BOMB = "\n".join(["- &a0 [x, x]", *(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))])


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        (f"net:\n{BOMB}\n", "config-not-yaml", "references"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "config-not-yaml", "references"),
        ("net: " + "[" * 20_000, "config-not-yaml", "nested too deeply"),
        ("net: " + "{a: " * 10_000, "config-not-yaml", "nested too deeply"),
        ("- " * 20_000, "config-not-yaml", "nested too deeply"),
        (f"epochs: {'9' * 5000}\n", "config-not-yaml", "digits"),
        (f"net: 0x{'f' * 5000}\n", "wrong-type", "thousands of digits is not a text"),
        (f"? 0x{'f' * 5000}\n: 1\n", "unknown-setting", "unknown key a number"),
        ("net: 2020-99-99\n", "config-not-yaml", "month"),
        ("net: !!timestamp x\n", "config-not-yaml", "a.yaml"),
        ("net: !!bool x\n", "config-not-yaml", "a.yaml"),
        ("net: !!python/object/apply:os.getcwd []\n", "config-not-yaml", "a.yaml"),
        ("epochs: 3\nlr: 1\nepochs: 30\n", "config-not-yaml", "epochs occurs twice"),
        ("net: [a, b]\n", "wrong-type", "a text"),
        ("net: {a: b}\n", "wrong-type", "a text"),
        ("lr: .inf\n", "wrong-type", "a finite number"),
        ("momentum: .nan\n", "wrong-type", "a finite number"),
        ("# \n" * 30_000, "config-too-large", "64 KiB"),
    ],
)
def test_hostile_files_are_rejected_at_once(
    text: str, code: str, fact: str, tmp_path: Path, user_error: Expect
) -> None:
    begin = time.monotonic()
    with user_error(code) as caught:
        read(tmp_path, text)
    assert time.monotonic() - begin < 20  # a bomb runs for minutes
    message = str(caught.value)
    assert fact in message
    assert "a.yaml" in message
    assert "\n" not in message
    assert len(message) < 1000


def test_many_unknown_keys_are_shortened(tmp_path: Path, user_error: Expect) -> None:
    with user_error("unknown-setting") as caught:
        read(tmp_path, "".join(f"key{i}: 1\n" for i in range(500)))
    assert "and 480 more faults" in str(caught.value)


def test_a_reference_to_a_value_is_accepted(tmp_path: Path) -> None:
    assert read(tmp_path, "lr: &rate 0.5\nmin_lr: *rate\n") == {"lr": 0.5, "min_lr": 0.5}


@pytest.mark.parametrize("kind", [TrainConfig, EvalConfig, PredictConfig])
def test_every_number_has_a_range(kind: Any) -> None:
    """A new option is covered: no whole number is unlimited, and no decimal number may be NaN or infinite."""
    numbers = [f for f in dataclasses.fields(kind) if str(f.type).split(" |")[0] in ("int", "float")]
    assert numbers
    for field in numbers:
        values = [10**30, 10**5000] if str(field.type).startswith("int") else [float("nan"), float("inf")]
        required = {f.name: "x" for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        for value in values:
            found = find_out_of_range(kind(**required, **{field.name: value}), code="number")
            assert [error.code for error in found] == ["number"], field.name
            assert f"--{field.name.replace('_', '-')} must be " in str(found[0])
    assert find_out_of_range(kind()) == []
