"""Where the images and masks of a raw download lie, by named layouts; opens no picture and writes nothing.

Folder names are compared without regard to case, spaces, hyphens and underscores. A layout lists alternatives,
since the same set is handed on in several arrangements; the first that is there wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.data.images import EXTENSIONS
from promise.data.table import read_table
from promise.runtime.errors import MissingFileError, UserError, unknown_name

LISTED = 5  # examples in a message


@dataclass(frozen=True)
class Rule:
    """A mask's base name is ``prefix`` + the image's base name, less ``drop`` at its end, + ``suffix``."""

    prefix: str = ""
    suffix: str = ""
    drop: str = ""

    def mask_of(self, stem: str) -> str:
        """In lower case: some sets write ``_Segmentation``, some ``_segmentation``."""
        return (self.prefix + stem.removesuffix(self.drop) + self.suffix).lower()


@dataclass(frozen=True)
class Part:
    """A folder of images and the folder of their masks, below the set's folder."""

    images: str
    masks: str
    split: str = ""  # train, val or test where the folder says so


@dataclass(frozen=True)
class Layout:
    """How one data set is handed on."""

    text: str  # for people
    short: str  # what its CSV is called
    alternatives: tuple[tuple[Part, ...], ...]
    rules: tuple[Rule, ...] = (Rule(),)


@dataclass(frozen=True)
class Pair:
    """One image and its mask, as found."""

    name: str  # no extension; what its files will be called
    image: Path
    mask: Path
    split: str = ""  # as the layout says, where it says so
    line: int = 0  # of the CSV it was read from


@dataclass(frozen=True)
class ImageSet:
    """A data set, as found."""

    name: str  # what its files are called
    keys: tuple[str, ...]  # what a split file or --group may call it
    pairs: tuple[Pair, ...]
    faults: tuple[str, ...] = ()  # images without mask, masks without image
    csv: Path | None = None


def _pair(images: str, masks: str) -> tuple[Part, ...]:
    return (Part(images, masks),)


def _isic(training: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> tuple[Part, ...]:
    named = (("train", training), ("val", validation), ("test", test))
    return tuple(Part(folders[0], folders[1], split) for split, folders in named if folders)


_PLAIN = (_pair("images", "masks"), _pair("image", "mask"))
_TRUTH = _pair("Original", "Ground Truth")
_SPLIT_WORDS = (("train", "train"), ("training", "train"), ("val", "val"), ("valid", "val"), ("validation", "val"))
_SPLIT_FOLDERS = (*_SPLIT_WORDS, ("test", "test"), ("testing", "test"))

LAYOUTS: dict[str, Layout] = {
    "kvasir-seg": Layout("images/ and masks/", "kvasir", _PLAIN),
    "cvc-clinicdb": Layout(
        "Original/ and Ground Truth/, or images/ and masks/; also below PNG/ or TIF/",
        "clinicdb",
        (_TRUTH, *(_pair(f"{kind}/Original", f"{kind}/Ground Truth") for kind in ("PNG", "TIF")), *_PLAIN),
    ),
    "cvc-300": Layout("images/ and masks/, or bbdd/ and gtpolyp/", "cvc300", (*_PLAIN, _pair("bbdd", "gtpolyp"))),
    "cvc-colondb": Layout(
        "images/ and masks/, or one folder with 1.tiff, p1.tiff, …",
        "colondb",
        (*_PLAIN, _TRUTH, _pair("CVC-ColonDB", "CVC-ColonDB")),
        (Rule(), Rule(prefix="p")),
    ),
    "etis": Layout(
        "ETIS-LaribPolypDB/ and Ground Truth/ with 1.tif and p1.tif, or images/ and masks/",
        "etis",
        (*_PLAIN, _pair("ETIS-LaribPolypDB", "Ground Truth"), _TRUTH),
        (Rule(), Rule(prefix="p")),
    ),
    "isic2018": Layout(
        "the folders of the ISIC challenges 2018, 2017 or 2016",
        "isic",
        (
            _isic(
                ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
                ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
                ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
            ),
            _isic(
                ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
                ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
                ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
            ),
            _isic(
                ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
                (),
                ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
            ),
            *_PLAIN,
        ),
        (Rule(suffix="_segmentation"), Rule()),
    ),
    "folder": Layout(
        "any images/ and masks/, also below train/, val/ and test/; see --images, --masks, --mask-suffix",
        "",
        (
            *_PLAIN,
            *(_pair("images", masks) for masks in ("labels", "annotations", "gt", "groundtruth", "segmentations")),
            _TRUTH,
            _pair("imgs", "masks"),
            tuple(Part(f"{word}/images", f"{word}/masks", split) for word, split in _SPLIT_FOLDERS),
        ),
        (Rule(), *(Rule(suffix=s) for s in ("_mask", "_segmentation", "-mask", "_gt", "_label", "_seg"))),
    ),
}
PRANET = "TrainDataset/ and TestDataset/<set>/, each with images/ and masks/"
CSV = "a split CSV, as data_format/README.md describes it"
NAMES = (*LAYOUTS, "pranet", "csv")


def find_sets(
    layout: str, folder: Path, *, part: Part | None = None, rule: Rule | None = None, data_root: Path | None = None
) -> list[ImageSet]:
    """The image sets of a download; several for ``pranet``, else one.

    Args:
        layout: a name of :data:`NAMES`.
        folder: the download's folder, or one above; a file for ``csv``.
        part: instead of the layout's folders; only for ``folder``.
        rule: instead of the layout's rules; only for ``folder``.
        data_root: where the paths of a CSV begin.

    Raises:
        MissingFileError: no such folder or file.
        UserError: an unknown layout, or none of its arrangements is there; the text lists them.
    """
    if layout not in NAMES:
        raise unknown_name("layout", layout, NAMES)
    if layout == "csv":
        return [_read_csv(folder, data_root)]
    if not folder.is_dir():
        raise MissingFileError(f"{layout}={folder}: no such folder.")
    if layout == "pranet":
        return _find_pranet(folder)
    known = LAYOUTS[layout]
    alternatives = ((part,),) if part is not None else known.alternatives
    parts = _first_present(folder, alternatives)
    if not parts:
        wanted = "; or ".join(f"{a[0].images or '.'}/ and {a[0].masks or '.'}/" for a in alternatives)
        move = " Other names: --images DIR --masks DIR." if layout == "folder" and part is None else ""
        raise UserError(f"{layout}={folder}: holds none of the arrangements of this layout: {wanted}.{move}")
    name = known.short or _clean(folder.resolve().name)
    keys = (layout, name, folder.resolve().name)
    return [_collect(name, keys, parts, (rule,) if rule is not None else known.rules)]


# --- folders --------------------------------------------------------------------------------------

_Located = tuple[Path, Path, str]  # folder of images, of masks, split


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "set"


def _child(folder: Path, name: str) -> Path | None:
    exact = folder / name
    if exact.is_dir():
        return exact
    wanted = _plain(name)
    return next((p for p in sorted(folder.iterdir()) if p.is_dir() and _plain(p.name) == wanted), None)


def _below(folder: Path, relative: str) -> Path | None:
    found: Path | None = folder
    for name in relative.split("/"):
        if name not in ("", ".") and found is not None:
            found = found / ".." if name == ".." else _child(found, name)
    return found


def _bases(folder: Path) -> Iterator[Path]:
    """The folder itself, then those in it: archives often hold one folder more."""
    yield folder
    yield from sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _first_present(folder: Path, alternatives: Iterable[tuple[Part, ...]]) -> list[_Located]:
    alternatives = list(alternatives)
    for base in _bases(folder):
        for parts in alternatives:
            found = [(_below(base, part.images), _below(base, part.masks), part.split) for part in parts]
            present = [(i, m, split) for i, m, split in found if i is not None and m is not None]
            if present:
                return present
    return []


def _find_pranet(folder: Path) -> list[ImageSet]:
    base = next((b for b in _bases(folder) if _child(b, "TrainDataset") or _child(b, "TestDataset")), None)
    if base is None:
        raise UserError(f"pranet={folder}: holds neither TrainDataset/ nor TestDataset/. Expected: {PRANET}.")
    sets = []
    train, test = _child(base, "TrainDataset"), _child(base, "TestDataset")
    if train is not None:
        sets.append(_collect("train", ("pranet", "train"), _relabel(_first_present(train, _PLAIN), "train"), (Rule(),)))
    for inner in sorted(p for p in test.iterdir() if p.is_dir()) if test is not None else ():
        parts = _relabel(_first_present(inner, _PLAIN), "test")
        short = next((known.short for key, known in LAYOUTS.items() if _same_set(key, inner.name)), _clean(inner.name))
        if parts:
            sets.append(_collect(short, (short, inner.name), parts, (Rule(),)))
    if not sets or not any(s.pairs for s in sets):
        raise UserError(f"pranet={folder}: no images/ and masks/ below it. Expected: {PRANET}.")
    return sets


def _same_set(layout: str, folder: str) -> bool:
    short, name = _plain(layout), _plain(folder)
    return layout != "folder" and (name.startswith(short) or short.startswith(name))


def _relabel(parts: list[_Located], split: str) -> list[_Located]:
    return [(images, masks, split) for images, masks, _ in parts]


# --- images and their masks -----------------------------------------------------------------------


def _pictures(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    return sorted(p for p in found if p.is_file())


def _collect(name: str, keys: tuple[str, ...], parts: Sequence[_Located], rules: Sequence[Rule]) -> ImageSet:
    pairs: list[Pair] = []
    faults: list[str] = []
    for images, masks, split in parts:
        _match(images, masks, split, rules, pairs, faults)
    return ImageSet(name, keys, tuple(pairs), tuple(faults))


def _match(images: Path, masks: Path, split: str, rules: Sequence[Rule], pairs: list[Pair], faults: list[str]) -> None:
    pictures = [p for p in _pictures(images) if not p.stem.endswith("_superpixels")]  # ISIC 2017 lays them beside
    candidates: dict[str, list[Path]] = {}
    for path in _pictures(masks):
        candidates.setdefault(path.stem.lower(), []).append(path)
    shared = images.resolve() == masks.resolve()
    used: set[Path] = set()
    if shared:  # a picture that is the mask of another is no image
        used = {m for p in pictures if (m := _mask_of(p, candidates, rules)) is not None}
        pictures = [p for p in pictures if p not in used]
    lonely = []
    for picture in pictures:
        mask = _mask_of(picture, candidates, rules)
        if mask is None:
            lonely.append(picture.name)
            continue
        used.add(mask)
        pairs.append(Pair(picture.stem, picture, mask, split))
    faults += told_shortly(f"{images}: images without a mask in {masks}", lonely)
    if not shared:
        spare = [p.name for found in candidates.values() for p in found if p not in used]
        faults += told_shortly(f"{masks}: masks without an image in {images}", spare)


def _mask_of(picture: Path, candidates: dict[str, list[Path]], rules: Sequence[Rule]) -> Path | None:
    for rule in rules:
        found = [p for p in candidates.get(rule.mask_of(picture.stem), []) if p != picture]
        if found:
            return min(found, key=lambda p: EXTENSIONS.index(p.suffix.lower()))
    return None


def told_shortly(head: str, items: Sequence[str]) -> list[str]:
    """One sentence with a count and the first examples, or none."""
    if not items:
        return []
    more = f", … and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return [f"{head} ({len(items)}): {', '.join(items[:LISTED])}{more}"]


def _read_csv(path: Path, data_root: Path | None) -> ImageSet:
    table = read_table(path, data_root=data_root)
    pairs = tuple(Pair(row.name.replace("/", "_"), row.image, row.mask, row.split, row.line) for row in table.rows)
    return ImageSet(_clean(path.stem), ("csv", path.stem), pairs, csv=path)
