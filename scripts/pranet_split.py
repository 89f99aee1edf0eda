"""Write a split CSV of the field's polyp split (PraNet): Kvasir-SEG and CVC-ClinicDB, with validation rows.

    python scripts/pranet_split.py --root data --split-file data/splits/pranet_split.json --output runs/pranet

The root holds kvasir_seg/ and cvc_clinicdb/, each with images/ and masks/. Validation rows are taken from the
training rows, Kvasir's by chance and ClinicDB's by whole video sequences (--sequences), so that no frame beside
a training frame selects the epoch. Writes train.csv (train and val), kvasir.csv and clinicdb.csv (test).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SETS = {"kvasir_seg": "kvasir", "cvc_clinicdb": "clinicdb"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with kvasir_seg/ and cvc_clinicdb/")
    parser.add_argument("--split-file", type=Path, required=True, help='JSON {set: {"train": [...], "test": [...]}}')
    parser.add_argument("--sequences", type=Path, help="JSON frame → sequence of ClinicDB")
    parser.add_argument("--train", type=int, default=0, help="training images, both sets in proportion; 0: all")
    parser.add_argument("--val-share", type=float, default=0.1, help="of each set's training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    split = json.loads(arguments.split_file.read_text())
    sequence = json.loads(arguments.sequences.read_text()) if arguments.sequences else {}
    total = sum(len(split[name]["train"]) for name in SETS)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, short in SETS.items():
        groups = sequence if name == "cvc_clinicdb" else {}
        train, val = hold_out(split[name]["train"], groups, arguments.val_share, random.Random(arguments.seed))
        if arguments.train:
            keep = round(arguments.train * len(split[name]["train"]) / total)
            share = keep / len(train)
            train, val = train[:keep], val[: max(1, round(share * len(val)))]
        rows += [row(arguments.root, name, stem, "train") for stem in train]
        rows += [row(arguments.root, name, stem, "val") for stem in val]
        write(
            arguments.output / f"{short}.csv",
            [row(arguments.root, name, s, "test") for s in split[name]["test"]],
        )
    write(arguments.output / "train.csv", rows)


def hold_out(stems: list[str], groups: dict[str, int], share: float, rng: random.Random) -> tuple[list[str], list[str]]:
    """Shuffle, and set whole groups aside until ``share`` of the stems is reached; a stem without one is its own."""
    of = {stem: str(groups.get(stem, f"alone {stem}")) for stem in stems}
    order = sorted(set(of.values()))
    rng.shuffle(order)
    aside: set[str] = set()
    for group in order:
        if sum(of[s] in aside for s in stems) >= share * len(stems):
            break
        aside.add(group)
    mixed = rng.sample(stems, len(stems))
    return [s for s in mixed if of[s] not in aside], [s for s in mixed if of[s] in aside]


def row(root: Path, name: str, stem: str, split: str) -> str:
    image = next(p for p in (root / name / "images").glob(f"{stem}.*"))
    mask = next(p for p in (root / name / "masks").glob(f"{stem}.*"))
    return f"{image.relative_to(root)},{split},{mask.relative_to(root)}"


def write(path: Path, rows: list[str]) -> None:
    path.write_text("\n".join(["image_name,train_type,mask_name", *rows]) + "\n")
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
