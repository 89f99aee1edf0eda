"""The parts of scripts/gpu_check.sh that no command of the package covers, and the report of all.

    python scripts/gpu_check.py PART --device cuda --out OUT

Each part writes OUT/part-PART.json. It exits with status 1 if a result is wrong.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promise.benchmark.limits import copy_bandwidth, count_flop, matrix_peak, synchronize
from promise.benchmark.timings import limits_text, processor
from promise.data.phantom import make_phantoms
from promise.models.cpu import optimize_for_cpu
from promise.models.promise import Promise
from promise.models.registry import NETS, build_net
from promise.models.sam.backbones import run_block
from promise.runtime.environment import describe_environment
from promise.training import Callback, TrainConfig, Trainer, train
from promise.training.losses import bce_dice
from promise.types import Points, Prompts

FP32_LIMIT, BF16_LIMIT = 1e-3, 0.15  # largest and mean difference of probabilities to the CPU in fp32
SYNCHRONISATIONS = 8  # allowed in an epoch, for its mean loss; a loop that waits has one in every step


def main() -> int:
    """Run a part and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "report"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sam", default="lite_medsam")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", "SAM .* has random weights")
    if args.part == "report":
        return report(args.out)
    result = PARTS[args.part](args)
    (args.out / f"part-{args.part}.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result))
    return 0 if result.get("ok", True) else 1


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, and the limits of its device."""
    return {
        "environment": {**describe_environment(args.device), "processor": processor(), "driver": driver()},
        "flops": {precision: matrix_peak(args.device, precision) for precision in ("fp32", "bf16")},
        "bytes_per_second": copy_bandwidth(args.device),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


# --- correctness ----------------------------------------------------------------------------------


def nets(args: argparse.Namespace) -> dict[str, Any]:
    """Masks and gradients of every net on the device, beside those on the CPU in fp32."""
    image = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    xy = torch.rand(2, 16, 2, generator=torch.Generator().manual_seed(1)) * 256
    points = Points(xy, torch.tensor([[1, 0] * 8] * 2))
    found = {}
    for name in ("APM_dense", "APM_IPS_resnet", "IPS_GT") if args.quick else NETS:
        expected, gradient = outputs(build(name, "fp32", torch.device("cpu")), image, points)
        rows = {}
        for precision in ("fp32", "bf16"):
            masks, other = outputs(build(name, precision, args.device), image, points)
            difference = (masks - expected).abs()
            rows[precision] = {
                "largest": float(difference.max()),
                "mean": float(difference.mean()),
                "gradient": float((other - gradient).norm() / gradient.norm().clamp_min(1e-12)),
            }
        found[name] = rows
    wrong = [
        f"{name}, {precision}"
        for name, rows in found.items()
        for precision, values in rows.items()
        if not (values["largest"] <= FP32_LIMIT if precision == "fp32" else values["mean"] <= BF16_LIMIT)
    ]
    return {"ok": not wrong, "wrong": wrong, "nets": found}


def build(name: str, precision: str, device: torch.device, *, sam: str = "lite_medsam") -> Promise:
    """A net on random weights of SAM, the same on every device."""
    net = build_net(name, sam=sam, sam_checkpoint=None, num_points=16, precision=precision, seed=0)
    if net.apm is not None and net.apm.lesions is not None:  # random weights: lesions of any strength
        net.apm.lesions = dataclasses.replace(net.apm.lesions, min_score=0.0, min_probability=0.0)
    return optimize_for_cpu(net).to(device).eval()


def outputs(net: Promise, image: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Probabilities of the masks, and the gradient of their loss for the first learned weights, on the CPU."""
    device = next(net.sam.parameters()).device
    prompts = Prompts(points.to(device)) if net.needs_prompts else None
    prediction = net(image.to(device), prompts)
    learned = [p for p in net.parameters() if p.requires_grad]
    gradient = torch.zeros(1)
    if learned and prediction.mask_logits.requires_grad:
        target = (image.mean(1, keepdim=True) > 0.5).float().to(device)
        bce_dice(prediction.mask_logits, target).backward()
        gradient = next(p.grad for p in learned if p.grad is not None).detach().float().cpu()
    return torch.sigmoid(prediction.mask_logits.detach()).float().cpu(), gradient


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Training from features beside pixels, a resumed run beside an unbroken one, and waits for the device."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = 12 if args.quick else 64
        table = make_phantoms(root / "data", count=images, size=256, seed=0, splits=(0.67, 0.33, 0))
        common = TrainConfig(
            net="IPS_GT",
            sam="lite_medsam",
            split_csv=str(table),
            augment="none",
            cache_dir=str(root / "features"),
            epochs=2,
            batch_size=4,
            precision="fp32",
            device=str(args.device),
            seed=0,
            workers=0,
            quiet=True,
            tensorboard=False,
        )
        pixels = weights(common, root / "pixels", cache="off")
        cached = weights(common, root / "cached", cache="all")
        with suppress(KeyboardInterrupt):
            weights(common, root / "resumed", cache="all", callbacks=[StopAfterFirst()])
        resumed = weights(common, root / "resumed", cache="all", resume=True)
        waits = None if args.device.type != "cuda" else count_waits(common, root)
    result = {
        "cached beside pixels": distance(cached, pixels),
        "resumed beside unbroken": distance(resumed, cached),
        "synchronisations per epoch": waits,
    }
    ok = result["cached beside pixels"] < 1e-3 and result["resumed beside unbroken"] < 1e-3
    return {"ok": ok and (waits is None or waits <= SYNCHRONISATIONS), **result}


class StopAfterFirst(Callback):
    """Interrupts a run in its second epoch, before its files are written."""

    def on_epoch_end(self, trainer: Trainer, row: Any) -> None:
        """Raise ``KeyboardInterrupt`` when the second epoch ends, which is then trained again."""
        if row["epoch"] == 2:
            raise KeyboardInterrupt


def weights(config: TrainConfig, output: Path, *, callbacks: Any = (), **changes: Any) -> dict[str, Tensor]:
    """The learned weights at the end of a training."""
    train(dataclasses.replace(config, output=str(output), **changes), callbacks=callbacks)
    return safetensors.torch.load_file(output / "last.safetensors")


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of two sets of weights."""
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs)


def count_waits(config: TrainConfig, root: Path) -> int:
    """How often an epoch of training waits for the device, in the second epoch."""
    counted: list[int] = []

    class Counting(Trainer):
        def train_epoch(self, epoch: int) -> dict[str, float]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    return super().train_epoch(epoch)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                    counted.append(sum("synchroniz" in str(one.message) for one in caught))

    train(dataclasses.replace(config, output=str(root / "waits"), cache="all"), trainer_class=Counting)
    return counted[-1]


# --- speed ----------------------------------------------------------------------------------------


def encoder(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of implementations of the encoder, peak memory, and the share of the matrix peak."""
    peaks = {precision: matrix_peak(args.device, precision) for precision in ("fp32", "bf16")}
    rows = []
    for batch in args.batches:
        for name, precision, make in implementations(args.sam, args.device):
            try:
                rows.append(measure_encoder(name, precision, make, batch, args, peaks))
            except torch.cuda.OutOfMemoryError:
                rows.append({"variant": name, "batch": batch, "failed": "out of memory"})
            gc.collect()
            if args.device.type == "cuda":
                torch.cuda.empty_cache()
    return {"sam": args.sam, "flops": peaks, "rows": rows}


def implementations(sam: str, device: torch.device) -> Iterator[tuple[str, str, Callable[[], Callable[[Tensor], Any]]]]:
    """Name, precision and maker of each implementation."""
    yield "package, fp32", "fp32", lambda: package(sam, device, torch.float32)
    yield "package, bf16 autocast", "bf16", lambda: package(sam, device, torch.bfloat16)
    if sam.startswith("vit"):
        yield "SDPA with a bias, as in transformers, bf16", "bf16", lambda: with_sdpa(sam, device)
    for precision in ("fp32", "bf16"):
        yield f"ours, {precision}", precision, lambda precision=precision: ours(sam, device, precision, compiled=False)
    if device.type == "cuda":
        yield "ours, bf16, compiled", "bf16", lambda: ours(sam, device, "bf16", compiled=True)


def package(sam: str, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """The encoder of the SAM package, block by block."""
    net = build_net("SAM", sam=sam, sam_checkpoint=None, precision="fp32", seed=0).to(device).eval()
    backbone = net.sam.backbone
    encode = partial(backbone.encode, net.sam.image_encoder, taps=(), run=run_block)

    def run(image: Tensor) -> Any:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return encode(image)

    return run


def with_sdpa(sam: str, device: torch.device) -> Callable[[Tensor], Any]:
    """The encoder of the SAM package with PyTorch's fused attention and the relative positions as additive bias."""
    net = build_net("SAM", sam=sam, sam_checkpoint=None, precision="fp32", seed=0).to(device).eval()
    encoder_ = net.sam.image_encoder
    for block in encoder_.blocks:
        block.attn.forward = partial(sdpa_attention, block.attn)

    def run(image: Tensor) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return encoder_(image)

    return run


def sdpa_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention of segment_anything's ViT on maps (B, H, W, C)."""
    from segment_anything.modeling.image_encoder import get_rel_pos

    batch, height, width, _ = x.shape
    qkv = attention.qkv(x).reshape(batch, height * width, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)  # (B, heads, N, c)
    grid = query.reshape(batch, attention.num_heads, height, width, -1)
    rows = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, attention.rel_pos_h).to(grid))
    columns = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, attention.rel_pos_w).to(grid))
    bias = (rows[..., :, None] + columns[..., None, :]).reshape(*query.shape[:3], height * width)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query), scale=attention.scale)
    return attention.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))


def ours(sam: str, device: torch.device, precision: str, *, compiled: bool) -> Callable[[Tensor], Any]:
    """The encoder of this package as the commands use it."""
    net = build("SAM", precision, device, sam=sam)
    if compiled:
        net.compile_parts()
    return net.encode


@torch.inference_mode()
def measure_encoder(
    name: str,
    precision: str,
    make: Callable[[], Callable[[Tensor], Any]],
    batch: int,
    args: argparse.Namespace,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """Median time of a batch after two warm-up calls."""
    run = make()
    side = 1024 if args.sam != "lite_medsam" else 256
    image = torch.rand(batch, 3, side, side, device=args.device)
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(args.device)
    times = []
    for _ in range(2 + (1 if args.quick else 5)):
        synchronize(args.device)
        started = time.perf_counter()
        run(image)
        synchronize(args.device)
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[2:])
    flop = count_flop(lambda: package(args.sam, args.device, torch.float32)(image[:1]))
    memory = torch.cuda.max_memory_allocated(args.device) / 2**30 if args.device.type == "cuda" else None
    return {
        "variant": name,
        "batch": batch,
        "images_per_second": batch / seconds,
        "share_of_peak": flop * batch / seconds / peaks[precision],
        "peak_gib": memory,
    }


# --- report ---------------------------------------------------------------------------------------


def report(out: Path) -> int:
    """Join the results of all parts into gpu_check.json and gpu_check.md."""
    with (out / "parts.tsv").open(encoding="utf-8") as stream:
        names = ("part", "status", "seconds")
        parts = [dict(zip(names, row, strict=True)) for row in csv.reader(stream, delimiter="\t")]
    results = {part_of(path): json.loads(path.read_text()) for path in sorted(out.glob("part-*.json"))}
    curves = {part_of(path): read_curve(path) for path in sorted(out.glob("part-*-log.csv"))}
    (out / "gpu_check.json").write_text(json.dumps({"parts": parts, "results": results, "curves": curves}, indent=2))
    sections = (machine(results), status_table(parts), correctness(results), speed(results), trainings(results, curves))
    text = "\n".join("\n".join(lines) + "\n" for section in sections if (lines := list(section)))
    (out / "gpu_check.md").write_text(text, encoding="utf-8")
    return 0 if all(one["status"] in STATUS for one in parts) else 1


STATUS = {"0": "done", "124": "stopped at its time limit", "143": "stopped at its time limit"}


def part_of(path: Path) -> str:
    """The part that wrote a file."""
    return path.stem.removeprefix("part-").removesuffix("-log")


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a log.csv without empty values."""
    with path.open(encoding="utf-8") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def machine(results: dict[str, Any]) -> Iterator[str]:
    """The device, its software and its limits."""
    if "limits" in results:
        found = results["limits"]["environment"]
        packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
        yield f"{found['device_name'] or found['processor']}, driver {found['driver']}; {packages}."
        yield f"{limits_text(results['limits'])}."


def status_table(parts: list[dict[str, str]]) -> Iterator[str]:
    """What became of each part."""
    yield from ("| part | status | seconds |", "|---|---|---:|")
    for one in parts:
        status = STATUS.get(one["status"], f"failed, status {one['status']}")
        yield f"| {one['part']} | {status} | {one['seconds']} |"


def correctness(results: dict[str, Any]) -> Iterator[str]:
    """Differences to the CPU, of training from features, and of a resumed run."""
    if "nets" in results:
        yield "| net | fp32: largest difference to the CPU | fp32: gradient | bf16: mean difference |"
        yield "|---|---:|---:|---:|"
        for name, rows in results["nets"]["nets"].items():
            full, half = rows["fp32"], rows["bf16"]
            yield f"| {name} | {full['largest']:.1e} | {full['gradient']:.1e} | {half['mean']:.1e} |"
    if "training" in results:
        found = {name: value for name, value in results["training"].items() if name != "ok"}
        yield ""
        yield "Training: " + "; ".join(f"{name}: {value}" for name, value in found.items()) + "."


def speed(results: dict[str, Any]) -> Iterator[str]:
    """The encoder's implementations, then the comparisons of promise-bench."""
    for name in ("encoder", "encoder-lite"):
        if name in results:
            yield f"| {results[name]['sam']} | batch | images per second | share of the matrix peak | peak GiB |"
            yield "|---|---:|---:|---:|---:|"
            yield from map(encoder_row, results[name]["rows"])
            yield ""
    if "steps" in results:
        yield from ("| | variant | seconds | per | speed-up |", "|---|---|---:|---|---:|")
        for comparison in results["steps"]["comparisons"]:
            for row in comparison["rows"]:
                title, unit = comparison["title"], comparison["unit"]
                yield f"| {title} | {row['variant']} | {row['seconds']:.4g} | {unit} | {row['ratio']:.2f} |"


def trainings(results: dict[str, Any], curves: dict[str, Any]) -> Iterator[str]:
    """Epochs, seconds and scores of the trainings."""
    if curves:
        yield from (
            "| training | epochs | median seconds | best validation Dice | test Dice |",
            "|---|---:|---:|---:|---|",
        )
    for name, rows in curves.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        best = max((row["val_dice"] for row in rows if "val_dice" in row), default=float("nan"))
        tests = test_scores(results.get(f"{name}-scores", {"datasets": {}}))
        yield f"| {name} | {len(rows)} | {seconds:.2f} | {best:.4f} | {tests} |"


def encoder_row(row: dict[str, Any]) -> str:
    """One implementation of the encoder."""
    if "failed" in row:
        return f"| {row['variant']} | {row['batch']} | {row['failed']} | | |"
    memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
    speed, share = f"{row['images_per_second']:.3g}", f"{row['share_of_peak']:.0%}"
    return f"| {row['variant']} | {row['batch']} | {speed} | {share} | {memory} |"


def test_scores(summary: dict[str, Any]) -> str:
    """The native mean Dice of each data set of a summary.json."""
    return ", ".join(f"{name} {one['means']['native']['dice']:.4f}" for name, one in summary["datasets"].items())


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "limits": limits,
    "nets": nets,
    "training": training,
    "encoder": encoder,
    "encoder-lite": encoder,
}

if __name__ == "__main__":
    sys.exit(main())
