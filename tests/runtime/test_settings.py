"""Reading, checking and writing of settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promise.evaluation.config import EvalConfig
from promise.runtime.errors import MissingFileError
from promise.runtime.settings import check_values, read_yaml, write_yaml
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
        "lr": ("None", "a number"),
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
