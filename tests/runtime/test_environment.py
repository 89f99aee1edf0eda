"""The record of versions, commit and device."""

from __future__ import annotations

import sys

import pytest
import torch

from promise.runtime.environment import describe_environment, package_version

CPU = torch.device("cpu")


def test_record_names_versions_commit_and_device() -> None:
    record = describe_environment(CPU)
    assert record["command"] == sys.argv
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()
    assert record["git_commit"] is None or len(record["git_commit"].removesuffix("-dirty")) == 40


def test_commit_is_none_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_environment(CPU)["git_commit"] is None


def test_version_of_a_missing_package_is_none() -> None:
    assert package_version("no-such-package") is None
