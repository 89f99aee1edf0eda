"""The page holds what the files say, whole and harmless: no network, no script, whatever a file is called."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from promise.report.page import write_report
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError

Write = Callable[..., Path]
EVIL = "</title><script>document.title='owned'</script><img src=x onerror=alert(1)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """Every tag, every address and all words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += f" {data.strip()}"


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def run(write_evaluation: Write, tmp_path: Path) -> Path:
    """A training run with two evaluations in it."""
    folder = tmp_path / "run"
    sets = {"kvasir": 30, "etis": 12}
    write_evaluation(folder / "eval-gt", images=sets, draws=3, prompts="oracle", prompt_source="gt", better=0.1)
    write_evaluation(folder / "eval", images=sets, pictures=True, change=miss_one)
    (folder / "environment.json").write_text(
        json.dumps({"command": ["promise-train", "--net", "a b"], "git_commit": "c0ffee", "sam_sha256": "5a" * 32})
    )
    (folder / "config.yaml").write_text("net: APM_IPS_resnet\n")
    (folder / "log.csv").write_text(
        "epoch,train_loss,val_loss,val_dice,val_iou,lr,seconds\n1,1.2,1.1,.3,.2,1e-4,9\n2,0.9,,,,1e-4,9\n3,.8,.7,.5,.4,1e-4,9\n"
    )
    return folder


def miss_one(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[3, "native_dice"] = 0.0123
    return rows


def test_the_page_says_what_the_files_say(run: Path) -> None:
    page = read(write_report(run))
    summary = json.loads((run / "eval/summary.json").read_text())
    words = re.sub(r"\s+", " ", page.words)
    assert summary["statement"] in words
    for name, told in summary["datasets"].items():
        assert f"{name}: masks ({told['images']} images, test rows)" in words
        for protocol in ("reference", "native"):
            low, high = told["intervals"][protocol]["iou"]
            assert f"{told['means'][protocol]['iou']:.3f} [{low:.3f}, {high:.3f}]" in words
        assert f"pooled Dice {told['pooled']['dice']:.3f}" in words
        assert f"SAM's estimate is off by {told['calibration']['error']:.3f}" in words
    assert "± 0.004" in words
    assert "± over 3 draws 0.004" in words
    assert "image_003 0.012" in words
    assert "missed 1 3.3 %" in words
    for fact in (
        "promise-train --net 'a b'",
        "c0ffee",
        "5a" * 32,
        "native close:7",
        "checkpoint",
        "net: APM_IPS_resnet",
    ):
        assert fact in words
    # Two charts of intervals, of curves; histogram, boxes and calibration for each of four parts.
    assert page.tags.count("svg") == 2 + 2 + 3 * 4
    assert page.tags.count("img") == len(summary["gallery"]) == 12
    assert sum(value.startswith("data:image/jpeg;base64,") for _, value in page.attributes) == 12


def test_the_first_thing_is_what_to_beware_of(run: Path) -> None:
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    told = "etis: the net was selected on 5 of the 12 scored images; these scores are no test of it."
    summary["datasets"]["etis"]["seen"] = {"train": 0, "val": 5}
    summary["warnings"] = ["kvasir: 2 of the scored images are near-duplicates.", told]
    path.write_text(json.dumps(summary))
    words = read(write_report(run)).words
    assert words.count(told) == 1
    warned = [
        "kvasir: 2 of the scored images are near-duplicates.",
        told,
        "APM_IPS_resnet, oracle prompts: prompts drawn from the ground truth are not automatic segmentation.",
    ]
    places = [words.index(text) for text in warned]
    assert places == sorted(places)
    assert places[-1] < words.index("Results", words.index(warned[-1]))
    assert words.index(summary["statement"]) > places[-1]


def test_nothing_in_the_page_asks_the_network_or_runs(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert addresses
    assert all(value.startswith(("#", "data:image/jpeg;base64,")) for value in addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    targets = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href"} <= targets


def evil(write_evaluation: Write, folder: Path) -> Path:
    """Everything that a file can say says it in HTML."""
    write_evaluation(
        folder / "eval",
        images={EVIL: 4},
        change=lambda rows: rows.assign(
            name=[f"{EVIL}{i}" for i in range(4)], size_class="<b>small</b>", native_dice=[0.5, 0.01, 0.9, 0.7]
        ),
        net=EVIL,
        sam=EVIL,
        statement=EVIL,
        warnings=[EVIL],
        prompt_source=EVIL,
        postprocess={"reference": EVIL, "native": EVIL},
        gallery=[{"dataset": EVIL, "kind": "best", "name": EVIL, "dice": EVIL, "iou": None, "picture": EVIL}],
        environment={"command": [EVIL], "packages": {EVIL: EVIL}},
    )
    (folder / "environment.json").write_text(json.dumps({"command": [EVIL], "warnings": [EVIL]}))
    (folder / "config.yaml").write_text(EVIL)
    return folder


def test_a_name_is_never_a_tag(write_evaluation: Write, tmp_path: Path) -> None:
    path = write_report(evil(write_evaluation, tmp_path / "run"))
    page = read(path)
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("b") == 3  # those of the template
    assert not any(name == "onerror" for name, _ in page.attributes)
    assert page.words.count("<script>document.title='owned'</script>") > 20
    assert page.words.count("The picture is not there any more.") == 1
    assert "<script" not in (path.parent / "tables.md").read_text()


def test_pictures_come_from_the_evaluations_folder_only(run: Path, tmp_path: Path) -> None:
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    (tmp_path / "secret.png").write_bytes((run / "eval" / summary["gallery"][0]["picture"]).read_bytes())
    summary["gallery"][0]["picture"] = "../../secret.png"
    (run / "eval" / summary["gallery"][1]["picture"]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    path.write_text(json.dumps(summary))
    page = read(write_report(run))
    assert page.tags.count("img") == 10
    assert page.words.count("The picture is not there any more.") == 2


def test_an_evaluation_alone_and_several_of_one_net(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"kvasir": 5})
    b = write_evaluation(tmp_path / "b", images={"kvasir": 5, "etis": 3}, seed=1)
    page = write_report(a)
    assert page == a / "report.html"
    assert str(a) not in (a / "tables.md").read_text()
    words = read(write_report(None, [a, b], output=tmp_path / "new/both.html")).words
    assert f"APM_IPS_resnet, auto prompts ({a})" in words
    assert f"APM_IPS_resnet, auto prompts ({b})" in words
    assert "Training" not in words
    rows = (tmp_path / "new/tables.md").read_text().replace("\\", "").splitlines()
    assert sum(row.startswith(f"| APM_IPS_resnet {a} | auto") for row in rows) == 3
    assert sum(row.startswith(f"| APM_IPS_resnet {b} | auto") for row in rows) == 6


def test_an_old_evaluation_is_reported_without_what_it_lacks(write_evaluation: Write, tmp_path: Path) -> None:
    folder = _old(write_evaluation, tmp_path / "a")
    page = read(write_report(folder))
    assert "Not recorded by this evaluation, and left out: a calibration plot, scores by size, a gallery" in page.words
    assert "An evaluation here was made before intervals" in page.words
    assert page.tags.count("svg") == 2  # means without intervals, and a histogram in one colour
    dice = json.loads((folder / "summary.json").read_text())["datasets"]["kvasir"]["means"]["native"]["dice"]
    assert f"{dice:.3f}" in page.words


def _old(write_evaluation: Write, folder: Path) -> Path:
    write_evaluation(folder, statement=None, gallery=None, prompt_files=None, postprocess_source=None)
    summary = json.loads((folder / "summary.json").read_text())
    keys = ("split", "images", "empty_truths", "mean_predicted_iou", "means", "seen")
    summary["datasets"] = {n: {k: told[k] for k in keys} for n, told in summary["datasets"].items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    new = ["draw", "foreground_share", "size_class", "truth_pixels", "native_intersection", "native_predicted_pixels"]
    pd.read_csv(folder / "per_image.csv").drop(columns=new).to_csv(folder / "per_image.csv", index=False)
    return folder


def test_a_postprocessing_chosen_on_scored_images_is_told_where_it_is_used(run: Path) -> None:
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    summary["datasets"]["etis"]["seen"] = {"train": 0, "val": 0, "tune": 3}
    for source, times in (("checkpoint", 1), ("flag", 0)):
        path.write_text(json.dumps({**summary, "postprocess_source": source}))
        words = read(write_report(run, overwrite=True)).words
        assert words.count("etis: the postprocessing was chosen on 3 of the 12 scored images") == times


def test_a_training_without_evaluations(run: Path) -> None:
    shutil.rmtree(run / "eval")
    shutil.rmtree(run / "eval-gt")
    page = read(write_report(run))
    assert page.tags.count("svg") == 2
    assert "promise-train --net 'a b'" in page.words
    assert "Results" not in page.words
    assert not (run / "tables.md").exists()


def test_an_earlier_report_stays_unless_told_otherwise(run: Path) -> None:
    write_report(run)
    before = (run / "report.html").read_bytes()
    with pytest.raises(ExistingRunError, match=r"report\.html, tables\.md, tables\.tex"):
        write_report(run)
    assert write_report(run, overwrite=True).read_bytes() == before


def test_nothing_to_report_is_one_clear_error(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="nothing to report"):
        write_report(tmp_path / "empty")
    with pytest.raises(MissingFileError, match="no folder at"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"should be a file that ends in \.html"):
        write_report(run, output=tmp_path / "page")
    (run / "log.csv").write_text("epoch,train_loss\n1,much\n")
    with pytest.raises(UserError, match="is no log of a training"):
        write_report(run)
    (run / "environment.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON of a run"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it(write_evaluation: Write, run: Path, tmp_path: Path) -> None:
    page, bad = write_report(run), write_report(evil(write_evaluation, tmp_path / "bad"))
    dom = browse(page, tmp_path / "profile")
    found = Page(dom)
    assert "<title>APM_IPS_resnet on lite_medsam – ProMISe report</title>" in dom
    assert found.tags.count("svg") == 16
    assert found.tags.count("img") == 12
    assert "pooled Dice" in found.words
    worse = browse(bad, tmp_path / "profile2")
    assert "<title>owned" not in worse
    assert "script" not in Page(worse).tags


def browse(page: Path, profile: Path) -> str:
    assert CHROMIUM is not None
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}", "--dump-dom"),
        *(f"--disable-{name}" for name in quiet),
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
