from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from promise.data import images
from promise.data.images import read_image, read_size, rgb_pixels, write_png
from promise.data.inputs import input_size, read_input
from promise.data.masks import describe_turn, read_levels, read_mask
from promise.runtime.errors import MissingFileError

Errors = Callable[..., Any]
RAMP = np.arange(24 * 32 * 3, dtype=np.uint16).reshape(24, 32, 3)
RGB = (RAMP % 251).astype(np.uint8)
SQUARE = np.zeros((24, 32), np.uint8)
SQUARE[5:15, 7:20] = 1


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_rgb_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"a{suffix}", RGB))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


def test_jpeg_is_read_in_rgb_order(tmp_path: Path) -> None:
    red = np.zeros((24, 32, 3), np.uint8)
    red[..., 0] = 200
    image = read_image(save(tmp_path / "a.jpg", red, quality=95))
    assert image.shape == (24, 32, 3)
    assert np.abs(image.astype(int) - red).max() <= 4


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", RGB[..., 1]))
    np.testing.assert_array_equal(image, np.repeat(RGB[..., 1:2], 3, axis=2))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full((24, 32), 7, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), RGB)
    grey_alpha = Image.fromarray(rgba).convert("LA")
    grey_alpha.save(tmp_path / "la.png")
    expected = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 2], expected)


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    palette = Image.fromarray(SQUARE).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert tuple(image[0, 0]) == (10, 20, 30)
    assert tuple(image[10, 10]) == (200, 100, 50)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_by_its_own_range(tmp_path: Path, suffix: str) -> None:
    deep = (RAMP[..., 0] + 1000).astype(np.uint16)
    image = read_image(save(tmp_path / f"a{suffix}", deep))
    low, high = int(deep.min()), int(deep.max())
    expected = np.rint((deep.astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    np.testing.assert_array_equal(image[..., 0], expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_colour_keeps_channels_and_scales_them_together(tmp_path: Path, suffix: str) -> None:
    deep = np.full((24, 32, 3), 500, np.uint16)  # less than 8 bits of range: the high byte alone is flat
    deep[..., 0], deep[0, 0] = 600, 400
    cv2.imwrite(str(tmp_path / f"a{suffix}"), deep[..., ::-1])
    image = read_image(tmp_path / f"a{suffix}")
    assert tuple(image[5, 5]) == (255, 128, 128)
    assert tuple(image[0, 0]) == (0, 0, 0)


def test_constant_sixteen_bit_image_is_zero(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", np.full((8, 8), 900, np.uint16))).max() == 0


def test_float_tiff_is_scaled_and_nan_is_an_error(tmp_path: Path, user_error: Errors) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    image = read_image(save(tmp_path / "a.tif", values))
    assert (image[0, 0, 0], image[-1, -1, 0]) == (0, 255)
    values[3, 3] = np.nan
    with user_error("non-finite-values") as caught:
        read_image(save(tmp_path / "b.tif", values))
    assert "b.tif" in str(caught.value)


def test_exif_orientation_turns_image_and_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to view
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))
    assert read_size(tmp_path / "a.png") == (32, 24)


def test_size_without_orientation(tmp_path: Path) -> None:
    assert read_size(save(tmp_path / "a.png", RGB)) == (24, 32)


@pytest.mark.parametrize("foreground", [1, 255])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_binary_masks(tmp_path: Path, foreground: int, channels: int) -> None:
    pixels = SQUARE * np.uint8(foreground)
    if channels > 1:
        pixels = np.repeat(pixels[..., None], channels, axis=2)
    if channels == 4:
        pixels[..., 3] = 77  # alpha is ignored
    mask = read_mask(save(tmp_path / "m.png", pixels))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, SQUARE == 1)


def test_one_bit_mask(tmp_path: Path) -> None:
    Image.fromarray(SQUARE * np.uint8(255)).convert("1").save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), SQUARE == 1)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_constant_masks(tmp_path: Path, value: int) -> None:
    mask = read_mask(save(tmp_path / "m.png", np.full((8, 8), value, np.uint8)))
    assert mask.all() == (value > 0)
    assert mask.any() == (value > 0)


def test_jpeg_mask_is_thresholded_above_127(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 16:48] = 255
    mask = read_mask(save(tmp_path / "m.jpg", pixels, quality=60))
    np.testing.assert_array_equal(mask, pixels == 255)


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 1, 255)])
def test_other_mask_values_are_listed(tmp_path: Path, values: tuple[int, ...], user_error: Errors) -> None:
    with user_error("mask-not-binary") as caught:
        read_mask(save(tmp_path / "m.png", np.array([values], np.uint8)))
    assert f"3 values ({', '.join(map(str, values))})" in str(caught.value)
    assert "0 and 1, or 0 and 255" in str(caught.value)


def test_mask_with_different_channels(tmp_path: Path, user_error: Errors) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 2] = (255, 0, 0)
    for read in (read_mask, read_levels):
        with user_error("mask-channels-differ") as caught:
            read(save(tmp_path / "m.png", pixels))
        assert "255, 0, 0" in str(caught.value)


def test_photograph_or_dark_jpeg_is_not_a_mask(tmp_path: Path, user_error: Errors) -> None:
    with user_error("mask-not-binary") as caught:
        read_mask(save(tmp_path / "m.jpg", np.tile(np.arange(256, dtype=np.uint8), (64, 1))))
    assert "between 64 and 191" in str(caught.value)
    with user_error("mask-not-binary") as caught:
        read_mask(save(tmp_path / "n.jpg", np.ones((64, 64), np.uint8), quality=100))
    assert "maximum value is 1;" in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_mask, read_size])
def test_missing_empty_and_foreign_files(tmp_path: Path, read: Callable[[Path], Any], user_error: Errors) -> None:
    with user_error("missing-file") as caught:
        read(tmp_path / "none.png")
    assert isinstance(caught.value, MissingFileError)
    assert "none.png: " in str(caught.value)
    (tmp_path / "empty.png").touch()
    with user_error("empty-file") as caught:
        read(tmp_path / "empty.png")
    assert "empty.png: " in str(caught.value)
    assert "0 bytes" in str(caught.value)
    (tmp_path / "text.png").write_text("not an image at all")
    with user_error("not-an-image") as caught:
        read(tmp_path / "text.png")
    assert "text.png: " in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_truncated_files_are_errors(tmp_path: Path, suffix: str, user_error: Errors) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with user_error() as caught:
        read_image(path)
    assert caught.value.code in ("corrupt-image", "not-an-image")
    assert path.name in str(caught.value)


def test_truncated_sixteen_bit_colour_is_an_error(tmp_path: Path, user_error: Errors) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with user_error("corrupt-image"):
        read_image(tmp_path / "a.png")


def test_a_file_with_several_images_is_an_error(tmp_path: Path, user_error: Errors) -> None:
    page = Image.fromarray(RGB)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with user_error("multi-page-image") as caught:
        read_image(tmp_path / "a.tif")
    assert "3 images" in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")])
def test_animations_are_refused_by_every_reader(name: str, kind: str, tmp_path: Path, user_error: Errors) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(tmp_path / name, kind, save_all=True, append_images=[second])
    for read in (read_image, read_mask, read_levels, read_size, read_input, input_size):
        with user_error("multi-page-image") as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "Save the one that is meant" in str(caught.value)
    with Image.open(tmp_path / name) as opened, user_error("multi-page-image"):
        rgb_pixels(opened)
    with Image.open(tmp_path / name) as opened:
        assert rgb_pixels(opened.copy()).shape == RGB.shape  # one frame, which the caller chose


def test_pages_that_only_opencv_reads_are_refused(tmp_path: Path, user_error: Errors) -> None:
    pages = [np.random.default_rng(i).random((24, 32, 3)).astype(np.float32) for i in range(2)]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), pages)
    with pytest.raises(UnidentifiedImageError), Image.open(tmp_path / "a.tif"):
        pass
    for read in (read_image, read_size):
        with user_error("multi-page-image"):
            read(tmp_path / "a.tif")
    assert cv2.imwritemulti(str(tmp_path / "b.tif"), pages[:1])
    assert read_image(tmp_path / "b.tif").shape == (24, 32, 3)


def test_a_photo_with_a_preview_is_read(tmp_path: Path) -> None:
    first, preview = Image.fromarray(RGB), Image.fromarray(RGB[:2, :2])
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.n_frames == 2
    assert read_image(tmp_path / "a.jpg").shape == RGB.shape


def test_masks_of_other_levels_name_the_next_move(tmp_path: Path, user_error: Errors) -> None:
    grey = np.zeros((8, 8), np.uint8)
    for levels, fact in (((100, 255), "promise-prepare"), ((1, 2), "Set the lesions to 255")):
        grey[0, :2] = levels
        cv2.imwrite(str(tmp_path / "a.png"), grey)
        with user_error("mask-not-binary") as caught:
            read_mask(tmp_path / "a.png")
        assert fact in str(caught.value)
    palette = Image.fromarray((grey > 1).astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(tmp_path / "b.png")
    with user_error("mask-channels-differ") as caught:
        read_mask(tmp_path / "b.png")
    assert "palette" in str(caught.value)
    assert "Set the lesions to 255" in str(caught.value)


@pytest.mark.parametrize("value", [b"a.png", None, 3])
def test_a_value_that_is_no_path_is_one_message(value: Any, user_error: Errors) -> None:
    for read in (read_image, read_mask, read_levels, read_size, read_input):
        with user_error("not-a-path") as caught:
            read(value)
        assert type(value).__name__ in str(caught.value)
    with user_error("invalid-image-array"):
        rgb_pixels(value)


def test_arrays_that_are_not_images(user_error: Errors) -> None:
    for shape, dtype in (((4, 5, 2), np.uint8), ((4,), np.uint8), ((4, 5, 3), np.float32)):
        with user_error("invalid-image-array") as caught:
            rgb_pixels(np.zeros(shape, dtype))
        assert str(shape) in str(caught.value)
    with user_error("empty-image"):
        rgb_pixels(np.zeros((0, 5), np.uint8))


def test_images_are_saved_in_rgb(tmp_path: Path) -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 200
    write_png(tmp_path / "new/a.png", image)
    assert cv2.imread(str(tmp_path / "new/a.png"))[0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize("pixels", [RGB, RGB[..., 0], RAMP[..., 0] * np.uint16(20)], ids=["rgb", "grey", "16-bit"])
def test_a_written_file_contains_the_same_pixels(tmp_path: Path, pixels: np.ndarray) -> None:
    write_png(tmp_path / "new/a.png", pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/a.png")), pixels)


# --- files that would take all memory -------------------------------------------------------------


def tiff_header(path: Path, width: int, height: int) -> Path:
    """A TIFF of one strip whose header promises more pixels than the file has."""
    entries = {256: width, 257: height, 258: 64, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 8, 339: 3}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 16) + bytes(8) + struct.pack("<H", len(entries)) + fields + bytes(4)
    )
    return path


@pytest.mark.parametrize("read", [read_image, read_mask, read_levels, read_size])
def test_a_tiff_of_900_million_pixels_is_refused_by_its_header(read, tmp_path: Path, user_error: Errors) -> None:
    path = tiff_header(tmp_path / "a.tif", 30_000, 30_000)
    assert path.stat().st_size < 200
    with user_error("image-too-large") as caught:
        read(path)
    assert "30000 × 30000" in str(caught.value)


def test_a_png_bomb_is_refused_by_its_header(tmp_path: Path, user_error: Errors, monkeypatch) -> None:
    Image.new("1", (3000, 3000)).save(tmp_path / "a.png")
    monkeypatch.setenv("PROMISE_MAX_PIXELS", "8000000")
    for read in (read_image, read_mask, read_size):
        with user_error("image-too-large"):
            read(tmp_path / "a.png")


def test_a_tiff_of_three_channels_of_32_bits_is_scaled(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint32).reshape(4, 5, 3) * 10**6
    data, long, short = pixels.tobytes(), 4, 3
    fields = [(256, long, 1, 5), (257, long, 1, 4), (258, short, 3, 8), (259, short, 1, 1), (262, short, 1, 2)]
    fields += [(273, long, 1, 16), (277, short, 1, 3), (278, long, 1, 4), (279, long, 1, len(data)), (339, short, 1, 1)]
    head = struct.pack("<2sHI4H", b"II", 42, 16 + len(data), 32, 32, 32, 0)
    entries = b"".join(struct.pack("<HHII", *field) for field in fields)
    (tmp_path / "a.tif").write_bytes(head + data + struct.pack("<H", len(fields)) + entries + bytes(4))
    expected = np.rint(pixels.astype(np.float64) * 255 / (59 * 10**6)).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    assert read_size(tmp_path / "a.tif") == (4, 5)


def test_an_image_that_does_not_fit_into_the_memory_is_its_own_error(tmp_path: Path) -> None:
    code = """
import resource, sys
from promise.data.images import read_image
from promise.runtime.errors import UserError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
try:
    read_image(sys.argv[1])
except UserError as error:
    print(error.code)
"""
    pytest.importorskip("resource", reason="POSIX limits")
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((6000, 6000, 3), np.uint16))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "image-too-large\n"), done.stderr


def test_deep_colour_is_scaled_by_strips(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), RAMP)
    whole = read_image(path)
    monkeypatch.setattr(images, "_STRIP", 64)
    np.testing.assert_array_equal(read_image(path), whole)


def test_special_files_are_not_opened(tmp_path: Path, user_error: Errors) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (read_image, read_mask, read_levels, read_size):
        with user_error("not-a-file"):
            read(tmp_path / "a.png")


def test_different_exif_orientations_are_described(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned, plain = save(tmp_path / "a.jpg", RGB, exif=exif), save(tmp_path / "b.png", SQUARE)
    assert "orientation 3" in (describe_turn(turned, plain) or "")
    assert describe_turn(plain, plain) is None
    assert describe_turn(turned, turned) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_pixels_do_not_depend_on_the_strips(mode: str, monkeypatch) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (23, 17, 3), np.uint8))
    image = colours.convert("I").convert(mode) if mode == "I;16" else colours.convert(mode)
    plain = {"1": "L", "LA": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(mode)
    expected = np.array(image if plain is None else image.convert(plain))
    for strip in (1, 100, 1000):
        monkeypatch.setattr(images, "_STRIP", strip)
        found = images._pil_to_array(image)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
