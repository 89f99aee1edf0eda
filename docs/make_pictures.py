"""The pictures of the docs, made by the package's own commands of what scripts/quickstart.sh leaves:

    bash scripts/quickstart.sh && python docs/make_pictures.py

Writes docs/pictures/*.webp, each below 150 kB. The pages are photographed by Chromium, which Playwright drives (extras
[app] and [dev]).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
SHOWN = 6  # overlays side by side
BUNDLED = "skin"  # checkpoint of the overlays
WORST = 3  # images of the lowest Dice
LIMIT = 150_000  # bytes
ROOT = Path(__file__).parents[1]
SAMPLES, RUN = ROOT / "data_format/skin", ROOT / "runs/quickstart"


def main() -> None:
    """Make all pictures."""
    if not (RUN / "test/overlays").is_dir():
        sys.exit(f"{RUN / 'test/overlays'} is missing: run bash scripts/quickstart.sh first.")
    PICTURES.mkdir(exist_ok=True)
    save(side_by_side(sorted((RUN / "test/gallery").rglob("worst-*.png"))[:WORST]), "worst")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        of_tests = ("--split-csv", str(SAMPLES / "split.csv"), "--overlays", str(SHOWN))
        command("eval", "--ckpt", BUNDLED, *of_tests, "--output", "eval", "--quiet")
        save(side_by_side(sorted(Path("eval/overlays").rglob("*.png"))[:SHOWN]), "overlays")
        command("validate", str(SAMPLES / "split.csv"), "--picture", "data.png", "--quiet")
        save(Image.open("data.png"), "data")
        command("report", str(RUN), "--output", "report.html")
        save(photograph(Path("report.html").resolve().as_uri()), "report")
        with serve(str(RUN / "best.safetensors")) as address:
            save(photograph(address, opening=sorted((SAMPLES / "images").glob("*.jpg"))[-1]), "app")


def command(name: str, *arguments: str) -> None:
    """Run one of our commands, and stop where it fails."""
    subprocess.run([sys.executable, "-m", f"promise.cli.{name}", *arguments], check=True)


def side_by_side(paths: list[Path], *, side: int = 320, columns: int = 3) -> Image.Image:
    """A sheet of pictures."""
    rows = -(-len(paths) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for number, path in enumerate(paths):
        picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (number % columns * side, number // columns * side))
    return sheet


@contextmanager
def serve(ckpt: str) -> Iterator[str]:
    """promise-app on a free port; gives its address."""
    words = [sys.executable, "-m", "promise.cli.app", "--ckpt", ckpt, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield re.search(r"http://\S+", server.stdout.readline())[0]
        finally:
            server.terminate()


def photograph(address: str, opening: Path | None = None) -> Image.Image:
    """The upper part of a page, after an image was opened on it, if one is named."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver, driver.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(address)
        if opening is not None:
            page.set_input_files("#file", opening)
            page.wait_for_selector("#stage[data-state=ready]", timeout=120_000)
        return Image.open(BytesIO(page.screenshot()))


def save(picture: Image.Image, name: str) -> None:
    """Write a picture as WebP, and smaller until it is small enough."""
    path = PICTURES / f"{name}.webp"
    colours = picture.convert("RGB")
    while True:
        colours.save(path, quality=90, method=6)
        if path.stat().st_size < LIMIT:
            return
        colours = colours.resize((colours.width * 9 // 10, colours.height * 9 // 10), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
