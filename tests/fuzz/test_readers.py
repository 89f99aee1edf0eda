"""Readers of damaged and hostile files: each returns a valid value or raises ``UserError``, and never hangs.

``PROMISE_FUZZ_EXAMPLES`` sets the examples per test, drawn at random; by default they are few, the same in every run.

  PROMISE_FUZZ_EXAMPLES=20000 python -m pytest tests/fuzz -o timeout=0
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from promise import UserError
from promise.data.dicom import read_dicom, read_dicom_size
from promise.data.images import read_image, read_size
from promise.data.inputs import Input, list_inputs, read_input
from promise.data.masks import read_levels, read_mask
from promise.data.records import read_column
from promise.data.table import examine_table, read_table
from promise.inference.output_folder import PredictionFolder
from promise.models import checkpoint
from promise.models.metadata import Metadata, parse_metadata
from promise.models.sam.weights import read_state_dict
from promise.prompts.entry import LARGEST, MAX_LESIONS
from promise.prompts.file import Draw, PromptFile, prompts_text
from promise.prompts.sets import ImagePrompts, PromptSet
from promise.runtime.settings import MAX_POINTS, SPLITS, find_out_of_range, read_yaml, write_yaml
from promise.training.config import TrainConfig

EXAMPLES = int(os.environ.get("PROMISE_FUZZ_EXAMPLES", "0"))
SECONDS = 20  # of CPU time, for one example of at most a few kilobytes
FUZZ = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TOKENS = (
    *(
        b"\0",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\x80\0\0\0",
        b"\0\0\0\0",
        b"\r",
        b"\n\n",
        b'"',
        b"'",
        b",",
        b";",
    ),
    *(b"\t", b"{", b"[", b"}", b"]", b":", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"!!python/none ", b"!!float ", b"? "),
    *(b"| ", b"%", b"#", b"~", b"..", b"/", b"\\", b"\xef\xbb\xbf", b"\xed\xa0\x80", "é".encode(), "é".encode()),
    *(b"-1", b"1e999", b"NaN", b"Infinity", b"null", b"9" * 400, b"0x" + b"f" * 400, b"a" * 300, b"[" * 2000, b"true"),
)
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["", "auto", "nan", "\0", "\ud800", "a" * 500, "../..", "9" * 5000]),
)
VALUES = st.recursive(
    HOSTILE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@st.composite
def changed_bytes(draw: Callable[[Any], Any], samples: Sequence[bytes]) -> bytes:
    """A sample, of which a few parts are overwritten, removed, repeated or inserted; sometimes any bytes at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([1, 1, 2, 4, 16, 1 << 20])))
        new = draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=4), st.sampled_from(TOKENS)))
        change = draw(st.sampled_from(["overwrite", "replace", "insert", "repeat"]))
        if change == "overwrite":
            data = data[:start] + new + data[start + len(new) :]
        elif change == "repeat":
            data = data[:end] + data[start:end] + data[end:]
        else:
            data = data[:start] + new + data[start if change == "insert" else end :]
    return data


@st.composite
def changed_json(draw: Callable[[Any], Any], samples: Sequence[Any]) -> Any:
    """A value of JSON, of which a few nodes are replaced, removed or repeated."""
    value = copy.deepcopy(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        parent, node = None, value
        while isinstance(node, dict | list) and node and (parent is None or draw(st.integers(0, 3))):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            parent, key = node, draw(st.sampled_from(keys))
            node = parent[key]
        if parent is None:
            return draw(VALUES)
        change = draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
        if change == "remove":
            del parent[key]
        elif change == "repeat":
            parent[key] = [node] * draw(st.sampled_from([0, 2, 3]))
        else:
            parent[key] = draw(VALUES)
    return value


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Raise an error in an example that computes for longer than :data:`SECONDS`: other processes do not count."""

    def stop(*_: object) -> None:
        raise AssertionError(f"the reader needs more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def read_or_refuse(read: Callable[[], Any]) -> Any:
    """The value that a reader returns; ``None`` if it raises ``UserError`` with a code and a short message.

    Any other exception fails the test.
    """
    with _limited_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except UserError as error:
            refused = error
    assert all(refused.codes)
    assert 0 < len(str(refused)) < 20_000
    return None


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    """Headers that claim large images are refused, as those of 2²⁸ pixels are outside of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMISE_MAX_PIXELS", str(2**18))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# --- tables ------------------------------------------------------------------------------------------

TABLES = [
    text.encode()
    for text in (
        "image_name,train_type,mask_name\nimages/a.png,train,masks/a.png\nimages/b.png,val,masks/b.png\n",
        "\ufeffmask_name;image_name;train_type\r\nmasks/é.png;images/é.png;TEST\r\n\r\nmasks/b.png;images/b.png;val\r\n",
        'image_name\ttrain_type\tmask_name\n"images/a.png"\t"train"\t"masks\\a.png"\n/old/images/b.png\tval\t../masks/b.png\n',
    )
]


@pytest.fixture(scope="module")
def images(folder: Path) -> Path:
    for name in ("a", "b", "é"):
        for kind in ("images", "masks"):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(folder / kind / f"{name}.png")
    return folder


@FUZZ
@given(content=changed_bytes(TABLES), rooted=st.booleans())
def test_tables(content: bytes, rooted: bool, images: Path) -> None:
    path = images / "split.csv"
    path.write_bytes(content)
    root = images if rooted else None
    table = read_or_refuse(lambda: read_table(path, data_root=root))
    if table is not None:
        assert table.rows
        assert len({row.name for row in table.rows}) == len(table.rows)
        for row in table.rows:
            assert row.split in SPLITS
            assert row.image.is_file()
            assert row.mask.is_file()
    examined = read_or_refuse(lambda: examine_table(path, data_root=root))
    assert table is None or examined == (table, [])
    column = read_or_refuse(lambda: read_column(path, "image_name"))
    assert column is None or all(column.values())
    inputs = read_or_refuse(lambda: list_inputs([str(path)], data_root=str(images) if rooted else None))
    assert inputs is None or all(one.path.is_file() for one in inputs)


@FUZZ
@given(content=changed_bytes([b"images/a.png\n# comment\n\nimages/b.png\n", "images/é.png\r\n".encode()]))
def test_lists_of_images(content: bytes, images: Path) -> None:
    path = images / "list.txt"
    path.write_bytes(content)
    inputs = read_or_refuse(lambda: list_inputs([str(path)]))
    assert inputs is None or all(one.path.is_file() for one in inputs)


# --- settings ----------------------------------------------------------------------------------------

CONFIGS = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))]
KEYS = {field.name for field in dataclasses.fields(TrainConfig)}


@FUZZ
@given(content=changed_bytes(CONFIGS))
def test_configurations(content: bytes, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    check_configuration(path)


@FUZZ
@given(values=changed_json([dataclasses.asdict(TrainConfig())]))
def test_values_of_configurations(values: Any, folder: Path) -> None:
    path = folder / "values.yaml"
    path.write_text(json.dumps(values), encoding="utf-8", errors="surrogatepass")  # YAML contains JSON
    check_configuration(path)


def check_configuration(path: Path) -> None:
    values = read_or_refuse(lambda: read_yaml(path, TrainConfig))
    if values is None:
        return
    assert set(values) <= KEYS
    config = TrainConfig(**values)
    read_or_refuse(lambda: find_out_of_range(config))
    copy = path.with_suffix(".copy.yaml")
    write_yaml(copy, config)
    assert TrainConfig(**read_yaml(copy, TrainConfig)) == config


# --- prompts -----------------------------------------------------------------------------------------

SIZE = (40, 30)
BOX = np.array([1.0, 2, 20, 21])
SET = PromptSet(np.array([[3.5, 4], [30, 20]]), np.array([1, 0]), BOX, np.zeros((4, 4), np.float32))
DRAWS = [
    Draw(0, {"polyp": {"a": ImagePrompts(SIZE, (SET,), 1), "b": ImagePrompts(SIZE, ())}}),
    Draw(
        1, {"polyp": {"a": ImagePrompts(SIZE, (SET, PromptSet(box=BOX)), fuse=True), "b": ImagePrompts(SIZE, (SET,))}}
    ),
]
PROMPTS = [prompts_text("gt", DRAWS[:1]), prompts_text("auto", DRAWS)]


@FUZZ
@given(content=changed_bytes([text.encode() for text in PROMPTS]))
def test_prompts_files(content: bytes, folder: Path) -> None:
    (folder / "prompts.json").write_bytes(content)
    check_prompts(folder / "prompts.json")


@FUZZ
@given(values=changed_json([json.loads(text) for text in PROMPTS]))
def test_values_of_prompts_files(values: Any, folder: Path) -> None:
    (folder / "values.json").write_text(json.dumps(values))
    check_prompts(folder / "values.json")


def check_prompts(path: Path) -> None:
    def read() -> list[Draw]:
        return PromptFile(path).select({"polyp": {"a": SIZE, "b": SIZE}}, side=64, mask_side=4)

    draws = read_or_refuse(read)
    if draws is None:
        return
    for draw in draws:
        for prompts in draw.images["polyp"].values():
            assert prompts.size == SIZE
            assert len(prompts.sets) <= MAX_LESIONS
            for one in prompts.sets:
                assert len(one.xy) == len(one.label) <= MAX_POINTS
                assert one.xy.shape[1:] == (2,)
                assert (abs(one.xy) < LARGEST).all()
                assert set(one.label.tolist()) <= {-1, 0, 1}
                assert one.box is None or (one.box[:2] <= one.box[2:]).all()
                assert one.mask is None or np.isfinite(one.mask).all()
    path.write_text(prompts_text("gt", draws))
    assert prompts_text("gt", read()) == prompts_text("gt", draws)


# --- checkpoints -------------------------------------------------------------------------------------

RUN = Path(__file__).parents[1] / "formats/run"
METADATA = dataclasses.asdict(checkpoint.read_metadata(RUN / "best.safetensors"))
LESIONS = {"threshold": 0.5, "prompts": "box+points", "fuse": 0.5}
SAVED = [METADATA, {**METADATA, "lesions": LESIONS, "quality": {"bias": 0.5}, "tuning": {"split": "val"}, "epoch": 3}]


@FUZZ
@given(values=changed_json(json.loads(json.dumps(SAVED))))
def test_metadata(values: Any) -> None:
    metadata = read_or_refuse(lambda: parse_metadata("best.safetensors", json.dumps(values)))
    if metadata is not None:
        assert parse_metadata("copy", json.dumps(dataclasses.asdict(metadata))) == metadata


@FUZZ
@given(content=changed_bytes([json.dumps(one).encode() for one in SAVED]))
def test_text_of_metadata(content: bytes) -> None:
    text = content.decode(errors="surrogateescape")
    metadata = read_or_refuse(lambda: parse_metadata("best.safetensors", text))
    assert metadata is None or isinstance(metadata, Metadata)


HEADER = {"format": checkpoint.FORMAT, "promise": json.dumps(METADATA)}
WEIGHTS = safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, metadata=HEADER)


@FUZZ
@given(content=changed_bytes([WEIGHTS]))
def test_checkpoints(content: bytes, folder: Path) -> None:
    path = folder / "best.safetensors"
    path.write_bytes(content)
    metadata = read_or_refuse(lambda: checkpoint.read_metadata(path))
    assert metadata is None or isinstance(metadata, Metadata)
    read_or_refuse(lambda: checkpoint.load(path, sam_checkpoint=None))


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@FUZZ
@given(content=changed_bytes([pickled({"model": {"module.a": torch.ones(2)}}), pickled({"b": torch.zeros(3, 2)})]))
def test_weight_files(content: bytes, folder: Path) -> None:
    path = folder / "sam.pth"
    path.write_bytes(content)
    state = read_or_refuse(lambda: read_state_dict(path))
    assert state is None or all(isinstance(value, torch.Tensor) for value in state.values())


# --- images ------------------------------------------------------------------------------------------


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(pixels)
    image.convert(mode or image.mode).save(stream, kind, **options)
    return stream.getvalue()


GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10)
COLOUR = np.stack([GREY, GREY // 2, GREY + 99], axis=2)
MASK = np.where(GREY > 60, 255, 0).astype(np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6
IMAGES = {
    ".png": [
        encoded(COLOUR, "PNG", exif=TURNED),
        encoded(MASK, "PNG"),
        encoded(MASK, "PNG", "1"),
        encoded(COLOUR, "PNG", "P"),
        encoded(GREY, "PNG", "LA"),
        encoded(GREY.astype(np.uint16) * 200, "PNG"),
    ],
    ".jpg": [encoded(COLOUR, "JPEG", exif=TURNED), encoded(MASK, "JPEG", quality=95), encoded(COLOUR, "JPEG", "CMYK")],
    ".bmp": [encoded(COLOUR, "BMP"), encoded(MASK, "BMP", "1"), encoded(COLOUR, "BMP", "P")],
    ".tif": [
        encoded(COLOUR, "TIFF"),
        encoded(COLOUR, "TIFF", compression="tiff_lzw"),
        encoded(MASK, "TIFF", "1", compression="group4"),
        encoded(GREY.astype(np.uint16) * 200, "TIFF", compression="tiff_deflate"),
        encoded(GREY.astype(np.float32), "TIFF"),
        encoded(MASK, "TIFF", save_all=True, append_images=[Image.fromarray(MASK)]),
    ],
}


@pytest.mark.parametrize("suffix", IMAGES)
def test_images_and_masks(suffix: str, folder: Path) -> None:
    @FUZZ
    @given(content=changed_bytes(IMAGES[suffix]))
    def check(content: bytes) -> None:
        path = folder / f"image{suffix}"
        path.write_bytes(content)
        size = read_or_refuse(lambda: read_size(path))
        image = read_or_refuse(lambda: read_image(path))
        if image is not None:
            assert (image.dtype, image.shape[2:]) == (np.uint8, (3,))
            assert image.size
            assert size is None or size == image.shape[:2]
        mask = read_or_refuse(lambda: read_mask(path))
        assert mask is None or (mask.dtype, mask.ndim) == (np.bool_, 2)
        assert mask is None or image is None or mask.shape == image.shape[:2]
        levels = read_or_refuse(lambda: read_levels(path))
        assert levels is None or (levels.dtype, levels.ndim) == (np.uint8, 2)

    check()


def dicom(pixels: np.ndarray, kind: str = "MONOCHROME2", **other: Any) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="needs the [dicom] extra")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.FileDataset("a.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[:2]
    data.PhotometricInterpretation, data.SamplesPerPixel = kind, pixels.ndim * 2 - 3  # 1 or 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in other.items():
        setattr(data, name, value)
    stream = io.BytesIO()
    data.save_as(stream)
    return stream.getvalue()


def test_dicom(folder: Path) -> None:
    scan = GREY.astype(np.int16) * 20
    samples = [
        dicom(scan, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400),
        dicom(scan, "MONOCHROME1", NumberOfFrames=1),
        dicom(COLOUR, "RGB"),
        dicom(COLOUR, "YBR_FULL"),
    ]

    @FUZZ
    @given(content=changed_bytes(samples))
    def check(content: bytes) -> None:
        path = folder / "image.dcm"
        path.write_bytes(content)
        size = read_or_refuse(lambda: read_dicom_size(path))
        image = read_or_refuse(lambda: read_dicom(path))
        if image is not None:
            assert (image.dtype, image.shape[2:]) == (np.uint8, (3,))
            assert image.shape[:2] == size
        read_or_refuse(lambda: read_input(path))

    check()


# --- records of finished images ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prediction(images: Path) -> dict[str, Any]:
    """The files of an output folder of promise-predict, as values of JSON."""
    output = PredictionFolder(images / "original")
    output.prepare({"checkpoint": "abc", "split": None}, {}, ())
    for name in ("a", "b"):
        one = Input(name, images / f"images/{name}.png")
        output.add(one, ImagePrompts((4, 4), (PromptSet(),)), ["mask"], estimated_iou=0.5, iou=0.5, seconds=0.1)
    names = ("predict.json", "records/a.json", "records/b.json")
    return {name: json.loads((images / "original" / name).read_text()) for name in names}


def test_records_of_a_prediction(prediction: dict[str, Any], images: Path) -> None:
    @FUZZ
    @given(content=changed_json([prediction]))
    def check(content: Any) -> None:
        output = PredictionFolder(images / "resumed")
        (output.path / "records").mkdir(parents=True, exist_ok=True)
        for name in prediction:
            (output.path / name).write_text(json.dumps(content.get(name) if isinstance(content, dict) else content))
        inputs = [Input(name, images / f"images/{name}.png") for name in ("a", "b")]
        settings = {"checkpoint": "abc", "split": None}

        def resume() -> list[bool]:
            output.check(settings, overwrite=False)
            finished = output.finished(inputs, ["mask"])
            output.prepare(settings, {}, ["b"])
            output.join("auto")
            output.review(0.9)
            return finished

        finished = read_or_refuse(resume)
        assert finished is None or finished == [False, False]  # there are no masks

    check()
