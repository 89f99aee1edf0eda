"""Settings: read, checked all at once, written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from promise.evaluation.config import EvalConfig
from promise.runtime.errors import MissingFileError, UserError
from promise.runtime.settings import check_values, read_yaml, write_yaml
from promise.training.config import TrainConfig, check_train, parse_labels


def read(tmp_path: Path, text: str, kind: type = TrainConfig) -> dict:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    return read_yaml(tmp_path / "a.yaml", kind)


def test_values_come_as_their_types(tmp_path: Path) -> None:
    found = read(tmp_path, "lr: 1e-5\nepochs: 7.0\nshuffle: false\nseed: null\nnet: IPS_GT\nclip_norm: 1\n")
    assert found == {"lr": 1e-5, "epochs": 7, "shuffle": False, "seed": None, "net": "IPS_GT", "clip_norm": 1.0}
    assert [type(found[name]) for name in ("lr", "epochs", "clip_norm")] == [float, int, float]
    assert read(tmp_path, "split_csv: a.csv\n", EvalConfig) == {"split_csv": ("a.csv",)}
    assert read(tmp_path, "split_csv: [a.csv, b.csv]\n", EvalConfig) == {"split_csv": ("a.csv", "b.csv")}


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(
            tmp_path, "learning_rat: 1\nepochs: many\nshuffle: 'no'\nfreeze: FZ9\nlr:\nbatch_size: 2.5\nworkers: true\n"
        )
    words = str(caught.value)
    assert words.startswith(f"{tmp_path / 'a.yaml'}: unknown key 'learning_rat'")
    for part in (
        "epochs: 'many' is not a whole number",
        "shuffle: 'no' is not true or false",
        "freeze: 'FZ9' is none of FZ0, FZ1, FZ2, FZ3, FZ4",
        "lr: None is not a number",
        "batch_size: 2.5 is not a whole number",
        "workers: True is not a whole number",
    ):
        assert part in words
    assert "\n" not in words


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown key 'batchsize', did you mean 'batch_size'"):
        check_values({"batchsize": 3}, TrainConfig, origin="flags")


@pytest.mark.parametrize("text", ["epochs: .inf\n", "epochs: .nan\n", "epochs: [1]\n", "epochs: {a: 1}\n"])
def test_a_whole_number_is_nothing_else(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epochs: .* is not a whole number"):
        read(tmp_path, text)


def test_large_seeds_are_whole_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "seed: 9007199254740993\n") == {"seed": 9007199254740993}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must hold 'key: value' lines, it holds NoneType"),
        (b"- a\n- b\n", "must hold 'key: value' lines, it holds list"),
        (b"a: b: c\n", "is not YAML"),
        (b"net: \xff\xfe\n", "a.yaml"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_yaml(tmp_path / "a.yaml", TrainConfig)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no configuration at"):
        read_yaml(tmp_path / "absent.yaml", TrainConfig)


@pytest.mark.parametrize(
    "config",
    [TrainConfig(), TrainConfig(lr=1e-5, seed=3, net="APM_cross"), EvalConfig(split_csv=("a", "ä")), EvalConfig()],
)
def test_what_is_written_is_read(config: TrainConfig | EvalConfig, tmp_path: Path) -> None:
    write_yaml(tmp_path / "b.yaml", config)
    assert type(config)(**read_yaml(tmp_path / "b.yaml", type(config))) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("validate_every", 0),
        ("workers", -1),
        ("early_stopping", -1),
        ("clip_norm", -0.5),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("warmup_epochs", -1.0),
    ],
)
def test_settings_without_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be"):
        check_train(TrainConfig(**{"split_csv": "a.csv", name: value}))


def test_resume_and_overwrite_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        check_train(TrainConfig(split_csv="a.csv", resume=True, overwrite=True))
    check_train(TrainConfig(split_csv="a.csv", resume=True))


@pytest.mark.parametrize("text", ["1-1-0-0", "1,1,0,0", "1 1 0 0"])
def test_point_labels(text: str) -> None:
    assert parse_labels(text) == (1, 1, 0, 0)
    assert parse_labels(None) is None
    with pytest.raises(UserError, match="--point-labels wants 0s and 1s"):
        parse_labels(text + "-x")


def test_a_configuration_of_the_other_command_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("net: IPS_GT\nepochs: 3\nfreeze: FZ0\n")
    with pytest.raises(UserError, match=r"is a configuration for promise-train \(it sets epochs, freeze\)"):
        read_yaml(path, EvalConfig)


def test_another_name_of_a_setting_gets_the_hint(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("learning_rate: 1e-4\n")
    with pytest.raises(UserError, match="unknown key 'learning_rate', did you mean 'lr'"):
        read_yaml(path, TrainConfig)
