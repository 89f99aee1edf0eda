"""Comparison of graphs with the net."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promise import checkpoint
from promise.data.transforms.recipes import build_transform
from promise.export.checks import Check, check_graphs, difference, make_images, worst
from promise.export.formats import Runner
from promise.export.graphs import Graph, build_graphs
from promise.models.registry import parse_net_name


def run_directly(graph: Graph, change: Callable[[str, Any], Any] = lambda _name, value: value) -> Runner:
    """A runner that is the module itself, with ``change`` applied to its outputs."""

    def run(inputs: Any) -> Any:
        found = graph.module(*inputs.values())
        return {name: change(name, value.numpy()) for name, value in zip(graph.outputs, found, strict=True)}

    return run


@pytest.fixture(scope="module", params=["APM_IPS_resnet", "IPS_GT", "APM_IPS_dense", "APM_dense", "APM_hybrid"])
def case(
    build: Callable[..., Any],
    save_lesion_net: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Any:
    if parse_net_name(request.param)[0].trains_map:
        path = tmp_path_factory.mktemp("net") / "net.safetensors"
        settings = {"threshold": 0.6, "min_score": 0.0, "min_probability": 0.0, "flips": True}
        if request.param == "APM_dense":
            settings |= {"mask_prompt": True, "output": "multimask"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            net, _ = checkpoint.load(save_lesion_net(path, request.param, **settings))
        net.eval()
    else:
        net = build(request.param, num_points=4).eval()
    graphs = build_graphs(net, pixels="imagenet", threshold=0.5)
    images = make_images(net, build_transform("basic_color", image_size=64, pixels="imagenet"), count=2)
    return net, graphs, images


def test_the_exported_modules_pass(case: Any) -> None:
    net, graphs, images = case
    checks = check_graphs(net, {g.name: run_directly(g) for g in graphs}, images, threshold=0.5)
    assert {check.graph for check in checks} == {g.name for g in graphs} | {"all in turn"}
    assert all(check.passed for check in checks), [str(check) for check in checks]
    if net.lesions is not None:
        counts = {len(net.prompt(image.encoded).prompts) for image in images}
        assert min(counts) < max(counts) <= net.lesions.max_lesions
    assert all(check.found < 1e-5 for check in checks if check.unit == "difference")


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("encoder", "tap_2"),
        ("prompter", "map"),
        ("prompter", "boxes"),
        ("decoder", "logits"),
        ("image", "mask"),
        ("image", "map"),
        ("image", "boxes"),
    ],
)
def test_a_wrong_output_is_found(case: Any, name: str, output: str) -> None:
    net, graphs, images = case
    if not any(g.name == name and output in g.outputs for g in graphs):
        pytest.skip("this net has no such graph or output")

    def change(found: str, value: Any) -> Any:
        if found != output:
            return value
        return np.roll(value, 9) ^ 255 if output == "mask" else value + 0.01 * max(1, abs(value).max())

    runners = {g.name: run_directly(g, change if g.name == name else lambda _n, v: v) for g in graphs}
    failed = [check for check in check_graphs(net, runners, images, threshold=0.5) if not check.passed]
    assert name in [check.graph for check in failed]
    assert output.removesuffix("s") in " ".join(map(str, failed))


def test_the_worst_result_is_kept_and_nan_fails() -> None:
    def make(found: float, unit: str = "difference") -> Check:
        return Check("encoder", "embedding", found, 0.999 if unit == "dice" else 1e-4, unit)

    assert worst([make(1e-6), make(2e-6), make(1e-7)])[0].found == 2e-6
    assert worst([make(1, "dice"), make(0.99, "dice"), make(1, "dice")])[0].found == 0.99
    assert math.isnan(worst([make(1e-6), make(math.nan), make(3.0)])[0].found)
    assert not make(math.nan).passed
    assert not make(math.nan, "dice").passed


def test_difference_is_relative_to_the_largest_value() -> None:
    assert difference(np.array([100.0, 1.0]), torch.tensor([101.0, 1.0])) == pytest.approx(1 / 101)
    assert difference(np.array([0.1]), torch.tensor([0.2])) == pytest.approx(0.1)
    assert difference(np.array([0.1]), torch.tensor([[0.2]])) == math.inf
    assert difference(np.array([math.nan]), torch.tensor([0.2])) == math.inf
