"""Find the images and masks of a raw download by a named layout; image files are not opened.

Folder names are compared without case, spaces, hyphens and underscores. A layout lists alternatives, since the same
data set is distributed in several folder structures; the first one that exists is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promise.data.images import EXTENSIONS
from promise.data.locate import SEGMENTATION_SUFFIX, composed
from promise.data.table import read_table
from promise.runtime.errors import MissingFileError, UserError, unknown_name
from promise.runtime.reading import is_folder, list_folder

EXAMPLES = 5  # items in a message


def _key(stem: str) -> str:
    """A base name in lower case and in one Unicode form."""
    return composed(stem).lower()


@dataclass(frozen=True)
class Rule:
    """How masks are named: ``prefix`` + base name of the image without ``drop`` at its end + ``suffix``."""

    prefix: str = ""
    suffix: str = ""
    drop: str = ""

    def mask_of(self, stem: str) -> str:
        """The base name of the mask, as :func:`_key`: data sets differ in ``_Segmentation`` and ``_segmentation``."""
        return _key(self.prefix + stem.removesuffix(self.drop) + self.suffix)


@dataclass(frozen=True)
class Part:
    """A folder of images and the folder of their masks, relative to the folder of the data set."""

    images: str
    masks: str
    split: str = ""  # train, val or test, if the folder defines it


@dataclass(frozen=True)
class Layout:
    """The folder structures in which a data set is distributed."""

    text: str  # description for people
    short: str  # name of the data set in output files; empty: the name of the folder
    alternatives: tuple[tuple[Part, ...], ...]
    rules: tuple[Rule, ...] = (Rule(),)
    any_folder: bool = False  # not the layout of a particular data set; folders can be named by flags


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    name: str  # base name of the output files
    image: Path
    mask: Path
    split: str = ""  # train, val or test, if the layout defines it
    line: int = 0  # 1-based line of the CSV; 0: not read from a CSV


@dataclass(frozen=True)
class ImageSet:
    """The pairs of a data set."""

    name: str  # name of the data set in output files
    keys: tuple[str, ...]  # names of the data set in a split file or in --group
    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...] = ()  # sentences about images without mask and masks without image
    csv: Path | None = None  # the CSV that the pairs were read from


def _pair(images: str, masks: str) -> tuple[Part, ...]:
    return (Part(images, masks),)


def _isic(training: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> tuple[Part, ...]:
    splits = (("train", training), ("val", validation), ("test", test))
    return tuple(Part(folders[0], folders[1], split) for split, folders in splits if folders)


_PLAIN = (_pair("images", "masks"), _pair("image", "mask"))
_GROUND_TRUTH = _pair("Original", "Ground Truth")
_SPLIT_FOLDERS = (
    ("train", "train"),
    ("training", "train"),
    ("val", "val"),
    ("valid", "val"),
    ("validation", "val"),
    ("test", "test"),
    ("testing", "test"),
)  # folder → split

LAYOUTS: dict[str, Layout] = {
    "kvasir-seg": Layout("images/ and masks/", "kvasir", _PLAIN),
    "cvc-clinicdb": Layout(
        "Original/ and Ground Truth/, or images/ and masks/; also below PNG/ or TIF/",
        "clinicdb",
        (_GROUND_TRUTH, *(_pair(f"{kind}/Original", f"{kind}/Ground Truth") for kind in ("PNG", "TIF")), *_PLAIN),
    ),
    "cvc-300": Layout("images/ and masks/, or bbdd/ and gtpolyp/", "cvc300", (*_PLAIN, _pair("bbdd", "gtpolyp"))),
    "cvc-colondb": Layout(
        "images/ and masks/, or one folder with 1.tiff, p1.tiff, …",
        "colondb",
        (*_PLAIN, _GROUND_TRUTH, _pair("CVC-ColonDB", "CVC-ColonDB")),
        (Rule(), Rule(prefix="p")),
    ),
    "etis": Layout(
        "ETIS-LaribPolypDB/ and Ground Truth/ with 1.tif and p1.tif, or images/ and masks/",
        "etis",
        (*_PLAIN, _pair("ETIS-LaribPolypDB", "Ground Truth"), _GROUND_TRUTH),
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
        (Rule(suffix=SEGMENTATION_SUFFIX), Rule()),
    ),
    "folder": Layout(
        "any images/ and masks/, also below train/, val/ and test/; see --images, --masks, --mask-suffix",
        "",
        (
            *_PLAIN,
            *(_pair("images", masks) for masks in ("labels", "annotations", "gt", "groundtruth", "segmentations")),
            _GROUND_TRUTH,
            _pair("imgs", "masks"),
            tuple(Part(f"{folder}/images", f"{folder}/masks", split) for folder, split in _SPLIT_FOLDERS),
        ),
        (Rule(), *(Rule(suffix=s) for s in ("_mask", SEGMENTATION_SUFFIX, "-mask", "_gt", "_label", "_seg"))),
        any_folder=True,
    ),
}
PRANET = "TrainDataset/ and TestDataset/<set>/, each with images/ and masks/"
CSV = "a split CSV as described in data_format/README.md"
NAMES = (*LAYOUTS, "pranet", "csv")


def find_sets(
    layout: str, folder: Path, *, part: Part | None = None, rule: Rule | None = None, data_root: Path | None = None
) -> list[ImageSet]:
    """Find the data sets of a download; several for ``pranet``, else one.

    Args:
        layout: one of :data:`NAMES`.
        folder: the folder of the download, or its parent; a file for ``csv``.
        part: replaces the folders of the layout.
        rule: replaces the rules of the layout.
        data_root: for ``csv``, as in :func:`promise.data.table.read_table`.

    Raises:
        MissingFileError: the folder (``missing-folder``) or file does not exist.
        UserError: the layout is unknown (``unknown-layout``), or the folder has none of its structures
            (``layout-not-found``; the text lists them).
    """
    if layout not in NAMES:
        raise unknown_name("layout", layout, NAMES)
    if layout == "csv":
        return [_read_csv(folder, data_root)]
    if not folder.is_dir():
        raise MissingFileError(f"{layout}={folder}: no such folder.", code="missing-folder")
    if layout == "pranet":
        return _find_pranet(folder)
    row = LAYOUTS[layout]
    alternatives = ((part,),) if part is not None else row.alternatives
    parts = _first_present(folder, alternatives)
    if not parts:
        expected = "; or ".join(f"{a[0].images or '.'}/ and {a[0].masks or '.'}/" for a in alternatives)
        hint = " For other names, use --images DIR --masks DIR." if row.any_folder and part is None else ""
        raise UserError(
            f"{layout}={folder}: the folder has none of the structures of this layout: {expected}.{hint}",
            code="layout-not-found",
        )
    name = row.short or _clean(folder.resolve().name)
    keys = (layout, name, folder.resolve().name)
    return [_collect(name, keys, parts, (rule,) if rule is not None else row.rules)]


# --- folders --------------------------------------------------------------------------------------

_Located = tuple[Path, Path, str]  # folder of images, of masks, split


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "set"


def _child(folder: Path, name: str) -> Path | None:
    exact = folder / name
    if is_folder(exact):
        return exact
    plain = _plain(name)
    return next((p for p in list_folder(folder) if is_folder(p) and _plain(p.name) == plain), None)


def _below(folder: Path, relative: str) -> Path | None:
    found: Path | None = folder
    for name in relative.split("/"):
        if name not in ("", ".") and found is not None:
            found = found / ".." if name == ".." else _child(found, name)
    return found


def _bases(folder: Path) -> Iterator[Path]:
    """The folder and its subfolders: archives often contain one additional level.

    Subfolders that may not be read are left out, such as lost+found of a disk.
    """
    yield folder
    for path in list_folder(folder):
        if is_folder(path) and not path.name.startswith(".") and os.access(path, os.R_OK | os.X_OK):
            yield path


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
        raise UserError(
            f"pranet={folder}: the folder has neither TrainDataset/ nor TestDataset/. Expected: {PRANET}.",
            code="layout-not-found",
        )
    sets = []
    train, test = _child(base, "TrainDataset"), _child(base, "TestDataset")
    if train is not None:
        sets.append(_collect("train", ("pranet", "train"), _relabel(_first_present(train, _PLAIN), "train"), (Rule(),)))
    for inner in filter(is_folder, list_folder(test)) if test is not None else ():
        parts = _relabel(_first_present(inner, _PLAIN), "test")
        short = next((row.short for key, row in LAYOUTS.items() if _same_set(key, row, inner.name)), _clean(inner.name))
        if parts:
            sets.append(_collect(short, (short, inner.name), parts, (Rule(),)))
    if not sets or not any(s.pairs for s in sets):
        raise UserError(
            f"pranet={folder}: the folder has no images/ and masks/ with pairs. Expected: {PRANET}.",
            code="layout-not-found",
        )
    return sets


def _same_set(key: str, layout: Layout, folder: str) -> bool:
    """Whether a folder of PraNet's test sets is the data set of a layout; PraNet shortens some names."""
    plain, name = _plain(key), _plain(folder)
    return not layout.any_folder and (name.startswith(plain) or plain.startswith(name))


def _relabel(parts: list[_Located], split: str) -> list[_Located]:
    return [(images, masks, split) for images, masks, _ in parts]


# --- images and their masks -----------------------------------------------------------------------


def _image_files(folder: Path) -> list[Path]:
    """Files with the extension of an image; broken links too, which are reported when they are read."""
    found = [p for p in list_folder(folder) if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    return [p for p in found if not is_folder(p)]


def _collect(name: str, keys: tuple[str, ...], parts: Sequence[_Located], rules: Sequence[Rule]) -> ImageSet:
    pairs: list[Pair] = []
    unpaired: list[str] = []
    for images, masks, split in parts:
        found, texts = _match(images, masks, split, rules)
        pairs += found
        unpaired += texts
    return ImageSet(name, keys, tuple(pairs), tuple(unpaired))


def _match(images: Path, masks: Path, split: str, rules: Sequence[Rule]) -> tuple[list[Pair], list[str]]:
    """The pairs of two folders, and sentences about files without partner."""
    sources = [p for p in _image_files(images) if not p.stem.endswith("_superpixels")]  # ISIC 2017, next to the images
    candidates: dict[str, list[Path]] = {}
    for path in _image_files(masks):
        candidates.setdefault(_key(path.stem), []).append(path)
    same_folder = images.resolve() == masks.resolve()
    used: set[Path] = set()
    if same_folder:  # a file that is the mask of another file is not an image
        used = {m for p in sources if (m := _mask_of(p, candidates, rules)) is not None}
        sources = [p for p in sources if p not in used]
    pairs, without_mask = [], []
    for image in sources:
        mask = _mask_of(image, candidates, rules)
        if mask is None:
            without_mask.append(image.name)
            continue
        used.add(mask)
        pairs.append(Pair(image.stem, image, mask, split))
    unpaired = summarise_items(f"{images}: images without a mask in {masks}", without_mask)
    if not same_folder:
        unused = [p.name for paths in candidates.values() for p in paths if p not in used]
        unpaired += summarise_items(f"{masks}: masks without an image in {images}", unused)
    return pairs, unpaired


def _mask_of(image: Path, candidates: dict[str, list[Path]], rules: Sequence[Rule]) -> Path | None:
    for rule in rules:
        found = [p for p in candidates.get(rule.mask_of(image.stem), []) if p != image]
        if found:
            return min(found, key=lambda p: EXTENSIONS.index(p.suffix.lower()))
    return None


def summarise_items(head: str, items: Sequence[str]) -> list[str]:
    """One sentence with the number of items and the first examples; empty if there are no items."""
    if not items:
        return []
    more = f", … and {len(items) - EXAMPLES} more" if len(items) > EXAMPLES else ""
    return [f"{head} ({len(items)}): {', '.join(items[:EXAMPLES])}{more}"]


def _read_csv(path: Path, data_root: Path | None) -> ImageSet:
    table = read_table(path, data_root=data_root)
    pairs = tuple(Pair(row.name.replace("/", "_"), row.image, row.mask, row.split, row.line) for row in table.rows)
    return ImageSet(_clean(path.stem), ("csv", path.stem), pairs, csv=path)
