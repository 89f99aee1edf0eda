"""Make a bundled checkpoint and its card from public downloads: prepare, train, evaluate, store.

    python docs/notebook/make_checkpoints.py polyp runs/bundled kvasir-seg=Kvasir-SEG cvc-clinicdb=CVC-ClinicDB \\
      --split-file pranet_split.json --group clinicdb=cvc_clinicdb_sequence_of_frame.json
    python docs/notebook/make_checkpoints.py skin runs/bundled isic2018=ISIC2017
    python docs/notebook/make_checkpoints.py --page

Not part of the package; run it in a checkout. Further arguments are passed to promise-prepare. With ``--run``, a run
that exists is used instead of training, with the training rows that it stores. ``--page`` only updates the page.

Writes data, run and evaluation to WORK/NAME; promise/checkpoints/NAME.safetensors, with weights in half precision and
without paths of this machine; its card in promise/checkpoints/cards.json; and the cards in docs/checkpoints.md. The
scores are those of the stored file. Texts that were edited in cards.json are kept; measured values are replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from skin_samples import HELD_OUT

from promise.cli import common
from promise.data.prepare.layouts import find_sets
from promise.data.table import read_table
from promise.models import bundled, checkpoint
from promise.models.bundled import Card
from promise.models.sam.weights import file_sha256
from promise.runtime.files import write_json, write_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/checkpoints.md"
SAMPLES = ROOT / "data_format/skin"
PATHS = ("split_csv", "data_root", "cache_dir", "output", "sam_checkpoint")  # settings that name files of a machine
NOT_MEDICAL = "For research only. Not a medical device: it must not be used for diagnosis or treatment."

Prepared = tuple[Path, list[Path]]  # CSV of the train and val rows, CSVs of the test rows


def run(command: str, *arguments: str | Path) -> None:
    """Run a command of the package or a script of this folder, and stop if it fails."""
    start = [str(Path(__file__).parent / command)] if command.endswith(".py") else ["-m", f"promise.cli.{command}"]
    status = subprocess.run([sys.executable, *start, *map(str, arguments)], check=False).returncode
    if status:
        sys.exit(status)  # the command has said why


def prepare_polyp(sources: Sequence[str], work: Path) -> Prepared:
    """PraNet's split, with crops without a polyp and pairs of polyps among the training rows."""
    data = work / "data"
    run("prepare", *sources, "--val-share", "0.1", "--in-place", "--overwrite", "--output", data)
    drawn = ("--split", "train", "--count", "100", "--seed", "1", "--append")
    run("no_lesion_crops.py", data / "train.csv", work / "crops", *drawn)
    run("two_lesions.py", work / "crops/split.csv", work / "pairs", *drawn)
    return work / "pairs/split.csv", [data / "kvasir.csv", data / "clinicdb.csv"]


def prepare_skin(sources: Sequence[str], work: Path) -> Prepared:
    """The training images of ISIC 2017 without the held-out images and without the test images of the samples."""
    layout, _, folder = sources[0].partition("=")
    held_out = (SAMPLES / HELD_OUT).read_text(encoding="utf-8").split()
    left_out = {*held_out, *(row.image.stem for row in read_table(SAMPLES / "split.csv").split("test"))}
    names = [pair.name for pair in find_sets(layout, Path(folder))[0].pairs if pair.name not in left_out]
    write_json(work / "split.json", {"train": names, "test": held_out})
    split = ("--split-file", work / "split.json", "--val-share", "0.1")
    run("prepare", *sources, *split, "--in-place", "--overwrite", "--output", work / "data")
    return work / "data/split.csv", [work / "data/split.csv"]


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made, and the texts of its card."""

    prepare: Callable[[Sequence[str], Path], Prepared]
    config: str
    texts: Mapping[str, Any]
    options: tuple[str, ...] = ()  # of promise-train, besides the configuration


KVASIR = {"name": "Kvasir-SEG", "terms": "research and education", "reference": "Jha et al., MMM 2020"}
CLINICDB = {
    "name": "CVC-ClinicDB",
    "terms": "no commercial use",
    "reference": "Bernal et al., Computerized Medical Imaging and Graphics 43, 2015",
}
ISIC = {"name": "ISIC 2017, training data", "terms": "CC-0", "reference": "Codella et al., arXiv:1710.05006"}
RECIPES = {
    "polyp": Recipe(
        prepare_polyp,
        "configs/polyp_lite_medsam.yaml",
        {
            "purpose": "polyps in colonoscopy images",
            "sources": [KVASIR, CLINICDB],
            "split": "PraNet's; a tenth of the training images for validation, videos of CVC-ClinicDB kept together; "
            "100 crops without a polyp and 100 pairs of polyps are added to the training images; the lesion settings "
            "were chosen on the validation images",
            "command": "python docs/notebook/make_checkpoints.py polyp runs/bundled kvasir-seg=Kvasir-SEG "
            "cvc-clinicdb=CVC-ClinicDB --split-file pranet_split.json "
            "--group clinicdb=cvc_clinicdb_sequence_of_frame.json",
            "evaluation": "promise-eval --ckpt polyp --split-csv kvasir.csv clinicdb.csv",
            "limits": [
                NOT_MEDICAL,
                "Not for commercial use: the terms of CVC-ClinicDB exclude it.",
                "In PraNet's split, frames of the same CVC-ClinicDB video are in the training and the test set: scores "
                "on CVC-ClinicDB may be too high.",
            ],
        },
    ),
    "skin": Recipe(
        prepare_skin,
        "configs/skin_lite_medsam.yaml",  # whose epochs and views are for a few hundred images
        options=(
            "--epochs",
            "18",
            "--cache-views",
            "2",
            "--warmup-epochs",
            "0.6",
            "--ema",
            "0.995",
            "--validate-every",
            "3",
        ),
        texts={
            "purpose": "skin lesions in dermoscopy images",
            "sources": [ISIC],
            "split": "the 200 images of data_format/skin/held_out.txt for testing; a tenth of the others for "
            "validation; the 60 test images of data_format/skin are not used",
            "command": "python docs/notebook/make_checkpoints.py skin runs/bundled isic2018=ISIC2017",
            "evaluation": "promise-eval --ckpt skin --split-csv split.csv",
            "limits": [
                NOT_MEDICAL,
                "Trained on dermoscopy images that all show a lesion: not for clinical photographs, and it may mark a "
                "region in an image without a lesion.",
                "The challenge has no patient identifiers: images of one patient may be in the training and test set.",
            ],
        },
    ),
}


def pack(source: Path, target: Path) -> None:
    """Write a checkpoint with weights in half precision and without the paths in its settings."""
    metadata = checkpoint.read_metadata(source)
    config = {name: None if name in PATHS else value for name, value in metadata.config.items()}
    state = safetensors.torch.load_file(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}
    safetensors.torch.save_file(halved, target, metadata=_header(source))
    checkpoint.rewrite_metadata(target, dataclasses.replace(metadata, config=config, sam_checkpoint="auto"))


def _header(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as stream:
        return dict(stream.metadata())


def measured(path: Path, trained: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a card that are read from the checkpoint, its run and its evaluation."""
    metadata = checkpoint.read_metadata(path)
    environment = json.loads((trained / "environment.json").read_text(encoding="utf-8"))
    epochs = [json.loads(line) for line in (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    threads = environment["threads"]
    device = environment["device_name"] or f"{threads} CPU core{'s' * (threads != 1)}"
    return {
        "net": metadata.net,
        "sam": metadata.sam,
        "rows": {split: len(metadata.seen[split]) for split in ("train", "val")},
        "seed": metadata.seed,
        "epoch": metadata.epoch,
        "minutes": round(sum(epoch["seconds"] for epoch in epochs) / 60, 1),
        "machine": f"{device}, {metadata.config['precision']}",
        "date": datetime.date.fromtimestamp((trained / "log.jsonl").stat().st_mtime).isoformat(),
        "results": [_result(name, one) for name, one in summary["datasets"].items()],
        "sha256": file_sha256(path),
        "size": path.stat().st_size,
    }


def _result(name: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    by_size = {size: {"images": one["images"], "dice": one["dice"]} for size, one in scores["by_size"].items()}
    return {
        "test_set": name,
        "images": scores["images"],
        "dice": scores["means"]["native"]["dice"],
        "interval": scores["intervals"]["native"]["dice"],
        "missed": scores["misses"]["images"],
        "by_size": by_size,
    }


def make(name: str, work: Path, sources: Sequence[str], trained: Path | None) -> None:
    """Make a checkpoint and its card."""
    recipe = RECIPES[name]
    rows, tests = recipe.prepare(sources, work)
    if trained is None:
        trained = work / "run"
        settings = ("--config", ROOT / recipe.config, *recipe.options, "--split-csv", rows, "--seed", "0")
        run("train", *settings, "--output", trained)
    packed = work / f"{name}.safetensors"
    pack(trained / "best.safetensors", packed)
    evaluation = ("--split", "test", "--output", work / "eval", "--overwrite")
    run("eval", "--ckpt", packed, "--split-csv", *tests, *evaluation)
    summary = json.loads((work / "eval/summary.json").read_text(encoding="utf-8"))
    store(name, packed, measured(packed, trained, summary))


def store(name: str, packed: Path, values: Mapping[str, Any]) -> None:
    """Add a checkpoint and its card to the package, and update the page."""
    path = bundled.FOLDER / bundled.CARDS
    cards = json.loads(path.read_text(encoding="utf-8"))
    cards[name] = {**RECIPES[name].texts, **cards.get(name, {}), **values}
    shutil.copyfile(packed, bundled.FOLDER / f"{name}.safetensors")
    write_json(path, dict(sorted(cards.items())))
    write_text(PAGE, page_text(PAGE.read_text(encoding="utf-8"), bundled.read_cards()))


def page_text(text: str, cards: Mapping[str, Card]) -> str:
    """The page with the cards between its two markers."""
    shown = "\n\n".join(_card_text(name, card) for name, card in cards.items())
    shown = shown or "This version contains no checkpoints."
    return re.sub(
        r"(?<=<!-- cards -->\n).*(?=<!-- end of cards -->)", lambda _: f"\n{shown}\n\n", text, flags=re.DOTALL
    )


def _card_text(name: str, card: Card) -> str:
    sources = "; ".join(f"{one.name} ({one.terms}; {one.reference})" for one in card.sources)
    facts = {
        "net": f"`{card.net}` on `{card.sam}`, {card.size / 1e6:.1f} MB",
        "training data": sources,
        "split": card.split,
        "images": f"{card.rows['train']} for training, {card.rows['val']} for validation",
        "training": f"seed {card.seed}, epoch {card.epoch} selected on the validation images, {card.minutes:g} minutes "
        f"without the encoding of images, {card.machine}, {card.date}",
        "SHA-256": f"`{card.sha256}`",
    }
    sizes = ("small", "medium", "large")
    head = ("test set", "images", "Dice", "missed", *(f"{size} lesions" for size in sizes))
    rows = [
        (one.test_set, one.images, bundled.dice_text(one), one.missed, *(_of_size(one, size) for size in sizes))
        for one in card.results
    ]
    table = [head, ("---",) * len(head), *rows]
    return "\n".join(
        [
            f"## `{name}`: {card.purpose}",
            "",
            "| | |\n|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            *(f"| {' | '.join(map(str, row))} |" for row in table),
            "",
            *(f"- {limit}" for limit in card.limits),
            "",
            "<!-- not run: needs downloaded images -->",
            f"```bash\n{card.command}\n{card.evaluation}\n```",
        ]
    )


def _of_size(result: bundled.Result, size: str) -> str:
    one = result.by_size.get(size)
    return f"{one['dice']:.3f} ({one['images']})" if one and one["images"] else "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one checkpoint, or update the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0], allow_abbrev=False)
    parser.add_argument("name", nargs="?", choices=RECIPES)
    parser.add_argument("work", nargs="?", type=Path, help="folder for data, run and evaluation")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a finished run of promise-train to use")
    parser.add_argument("--page", action="store_true", help=f"only write the cards to {PAGE.name}")
    args, sources = parser.parse_known_args(arguments)
    if args.page:
        write_text(PAGE, page_text(PAGE.read_text(encoding="utf-8"), bundled.read_cards()))
    elif args.work is None or not sources:
        parser.error("NAME, WORK and the sources for promise-prepare are required")
    else:
        make(args.name, args.work / args.name, sources, args.run)
    return 0


if __name__ == "__main__":
    sys.exit(common.run("make_checkpoints.py", main))
