"""The pictures of the docs, made by the package's own commands on synthetic images:

    python docs/make_pictures.py          all
    python docs/make_pictures.py data     only the chart of the data, which needs no training

Trains on a frozen LiteMedSAM: about a quarter of an hour on two cores without a GPU. Writes docs/pictures/*.png, each
below 150 kB. The report is photographed by Chromium, where there is one; else its picture stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
COUNT = 400  # pictures of the training; configs/quickstart.yaml tells what comes of them
SHOWN = 6  # overlays side by side
LIMIT = 150_000  # bytes
CONFIG = Path(__file__).parents[1] / "configs/quickstart.yaml"


def main(wanted: list[str]) -> None:
    """Make the pictures of these names, or all."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        command("phantom", "--output", "samples", "--count", str(COUNT))
        command("validate", "samples/split.csv", "--picture", "data.png", "--quiet")
        save(Image.open("data.png"), "data.png")
        if wanted == ["data"]:
            return
        command("train", "--config", str(CONFIG), "--seed", "7", "--output", "run")
        command("eval", "--ckpt", "run/best.safetensors", "--split-csv", "samples/split.csv", "--overlays", str(SHOWN))
        save(side_by_side(sorted(Path("run/eval/overlays").rglob("*.png"))[:SHOWN]), "overlays.png")
        command("report", "run")
        photograph(Path("run/report.html"), "report.png")


def command(name: str, *arguments: str) -> None:
    """Run one of our commands, and stop where it fails."""
    subprocess.run([sys.executable, "-m", f"promise.cli.{name}", *arguments], check=True)


def side_by_side(paths: list[Path], *, side: int = 256, columns: int = 3) -> Image.Image:
    """A sheet of pictures."""
    rows = -(-len(paths) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for number, path in enumerate(paths):
        picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (number % columns * side, number // columns * side))
    return sheet


def photograph(page: Path, name: str) -> None:
    """Take a picture of the upper part of a page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.stderr.write(f"no Chromium here: {name} stays as it is\n")
        return
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1100", "--screenshot=page.png"]
    subprocess.run([chromium, *options, page.resolve().as_uri()], check=True, capture_output=True)
    save(Image.open("page.png"), name)


def save(picture: Image.Image, name: str) -> None:
    """Write a picture in 256 colours, and smaller until it is small enough."""
    path = PICTURES / name
    colours = picture.convert("RGB")
    while True:
        colours.quantize(256).save(path, optimize=True)
        if path.stat().st_size < LIMIT:
            return
        colours = colours.resize((colours.width * 9 // 10, colours.height * 9 // 10), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main(sys.argv[1:])
