"""Benchmark: parts, arithmetic, and equality of baseline and optimised variants."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from promise.benchmark import GROWTH, MEMORY, PARTS, Settings, benchmark
from promise.benchmark.bench import Bench
from promise.benchmark.config import BenchConfig, resolve_settings
from promise.benchmark.limits import count_flop
from promise.benchmark.timings import Comparison, Work, limits_text, published_training, time_interleaved
from promise.cli.bench import main

pytestmark = pytest.mark.filterwarnings("ignore:SAM .* has random weights")


@pytest.fixture
def settings(tiny_vit: str) -> Settings:
    return Settings(
        sam=tiny_vit, sam_checkpoint=None, batch_size=2, repeats=1, images=2, device="cpu", precision="fp32"
    )


@pytest.mark.slow
def test_every_part_is_measured(settings: Settings, tmp_path: Path) -> None:
    text = benchmark(settings, output=tmp_path)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.md").read_text() == text
    assert len(record["comparisons"]) == len(PARTS)
    for comparison in record["comparisons"]:
        assert comparison["rows"][0]["ratio"] == 1
        for row in comparison["rows"]:
            assert 0 < row["seconds"] < 60
            assert f"| {row['variant']} | {row['seconds']:.4g} |" in text
    assert record["environment"]["threads"] == torch.get_num_threads()
    assert set(record["published_training"]) == {"IPS_GT", "APM_IPS_resnet"}
    assert "200 epochs over 1450 + 798 images, IPS_GT" in text


@pytest.mark.slow
def test_growth_is_measured_at_three_sizes_each(settings: Settings, tmp_path: Path) -> None:
    benchmark(settings, parts=tuple(GROWTH), output=tmp_path)
    found = {c["title"]: c["rows"] for c in json.loads((tmp_path / "bench.json").read_text())["comparisons"]}
    assert len(found) == len(GROWTH)
    assert all(len(rows) == 3 for rows in found.values())
    assert [row["variant"] for row in found["growth of caching with views"]] == ["1 views", "2 views", "4 views"]


@pytest.mark.slow
def test_memory_is_measured_in_separate_processes(lite: str, tmp_path: Path) -> None:
    settings = Settings(sam=lite, batch_size=2, repeats=1, images=2, device="cpu", precision="fp32")
    text = benchmark(settings, parts=["memory"], output=tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())["memory"]
    assert [(row["work"], row["batch_size"]) for row in found] == [
        (work, size) for work in ("training", "evaluation") for size in (1, 8, 16)
    ]
    assert all(0.2 < row["gib"] < 20 for row in found)
    assert found[2]["gib"] > found[0]["gib"] + 0.5  # sixteen images in training
    assert f"| training | 16 | {found[2]['gib']:.2f} |" in text


def test_variants_are_interleaved_after_a_warm_up() -> None:
    called: list[str] = []
    found = time_interleaved("t", "x", {n: lambda n=n: called.append(n) for n in "ab"}, repeats=2, per=4)
    assert "".join(called) == "ababab"
    assert [len(times) for times in found.turns.values()] == [2, 2]


def test_ratios_are_medians_of_repetitions() -> None:
    rows = Comparison("t", "x", {"plain": [4.0, 8.0, 6.0], "ours": [1.0, 4.0, 1.0]}).rows
    assert [row["seconds"] for row in rows] == [6.0, 1.0]
    assert [row["ratio"] for row in rows] == [1.0, 4.0]


def test_shares_of_the_matrix_peak() -> None:
    work = {"ours, bf16": Work(6e9, "bf16"), "theirs, fp32": Work(6e9, "fp32"), "half, fp16": Work(6e9, "fp16")}
    turns = {"theirs, fp32": [4.0], "ours, bf16": [1.0], "half, fp16": [1.0], "uncounted": [1.0]}
    found = Comparison("t", "x", turns, work=work).shares({"fp32": 2e9, "bf16": 8e9})
    assert found == {"theirs, fp32": pytest.approx(0.75), "ours, bf16": pytest.approx(0.75)}


def test_operations_are_counted_forward_and_backward() -> None:
    weight = torch.rand(8, 16, requires_grad=True)
    assert count_flop(lambda: torch.rand(4, 8) @ weight) == 2 * 4 * 8 * 16
    assert count_flop(lambda: (torch.rand(4, 8) @ weight).sum().backward()) == 2 * 2 * 4 * 8 * 16


def test_no_share_of_the_peak_is_above_one(settings: Settings, tmp_path: Path) -> None:
    text = benchmark(settings, parts=("encoder", "step:IPS_GT", "metrics"), output=tmp_path)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["limits"]["flops"]["fp32"] > 1e8
    assert record["limits"]["bytes_per_second"] > 1e7
    assert limits_text(record["limits"]) in text
    shares = [row.get("share_of_peak") for comparison in record["comparisons"][:2] for row in comparison["rows"]]
    assert all(0 < share < 1 for share in shares)
    assert all("share_of_peak" not in row for row in record["comparisons"][2]["rows"])


def test_hours_of_the_published_training() -> None:
    done = [
        Comparison("encoder, vit_b", "image", {"plain": [9.0], "ours": [3.0]}, part="encoder"),
        Comparison("a", "8 images", {"plain": [80.0], "ours": [0.8]}, part="training step", net="IPS_GT", images=8),
        Comparison("b", "8 images", {"plain": [72.0], "ours": [0.4]}, part="validation", net="IPS_GT", images=8),
    ]
    found = published_training(done, "IPS_GT")
    assert found is not None
    assert found["plain"] == pytest.approx(200 * (1450 * 10 + 798 * 9) / 3600)
    assert found["caching"] == pytest.approx(2248 * 3 / 3600)
    assert found["cached"] == pytest.approx(200 * (1450 * 0.1 + 798 * 0.05) / 3600 + found["caching"])
    assert found["ratio"] == pytest.approx(found["plain"] / found["cached"])
    assert published_training(done[1:], "IPS_GT") is None
    assert published_training(done, "APM_IPS_resnet") is None


def test_baseline_and_optimised_variants_predict_the_same(settings: Settings, tmp_path: Path) -> None:
    made = Bench(settings, tmp_path)
    for name in ("IPS_GT", "APM_IPS_resnet"):
        net = made.net(name, "fp32")
        with torch.no_grad():
            baseline, optimised = made.upstream_predict(name, made.image), made.predict(name, net.encode(made.image))
        torch.testing.assert_close(optimised.mask_logits, baseline.mask_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(optimised.iou, baseline.iou, atol=1e-5, rtol=1e-4)


def test_a_wrong_encoder_is_an_error(settings: Settings, monkeypatch, user_error) -> None:
    real = Bench.upstream_encode

    def off(self: Bench, image: torch.Tensor, *, taps: bool) -> object:
        return real(self, image, taps=taps).map(lambda x: x + 0.01)

    monkeypatch.setattr(Bench, "upstream_encode", off)
    with user_error("encoder-differs") as caught:
        benchmark(settings, parts=["encoder"])
    assert " 0.01" in str(caught.value)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_invalid_times_are_an_error(seconds: float, settings: Settings, monkeypatch, user_error) -> None:
    monkeypatch.setitem(PARTS, "metrics", lambda _: Comparison("metrics", "image", {"x": [seconds]}))
    with user_error("invalid-times") as caught:
        benchmark(settings, parts=["metrics"])
    assert "metrics, x" in str(caught.value)


def test_invalid_input_is_status_1(tiny_vit: str, capsys) -> None:
    assert main(["--sam", tiny_vit, "--parts", "encode", "--quiet"]) == 1
    assert "Did you mean 'encoder'?" in capsys.readouterr().err
    assert main(["--images", "0"]) == 1
    assert "--images must be at least 1" in capsys.readouterr().err


def test_quick_changes_defaults_only() -> None:
    assert resolve_settings(BenchConfig()) == Settings(sam_checkpoint=None)
    assert resolve_settings(BenchConfig(quick=True, images=9)) == Settings("lite_medsam", None, 2, 1, 9)
    assert resolve_settings(BenchConfig(sam_checkpoint="a.pth", device="cpu")) == Settings(
        sam_checkpoint="a.pth", device="cpu"
    )


def test_all_settings_out_of_range_are_reported(user_error) -> None:
    with user_error("batch-size-out-of-range", "repeats-out-of-range", "images-out-of-range"):
        resolve_settings(BenchConfig(batch_size=0, repeats=0, images=-1))


def test_help_lists_the_parts_measured_on_request() -> None:
    (parts,) = (field for field in dataclasses.fields(BenchConfig) if field.name == "parts")
    assert all(name in parts.metadata["help"] for name in (*GROWTH, MEMORY))
