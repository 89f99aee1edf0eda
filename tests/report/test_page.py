"""The page contains the facts of the files and no active content: no network access, no script, escaped names."""

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
from promise.runtime.errors import ExistingRunError, MissingFileError

Write = Callable[..., Path]
EVIL = "</title><script>document.title='owned'</script><img src=x onerror=alert(1)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
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
            self.text += f" {data.strip()}"


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


def test_the_page_contains_the_numbers_of_the_files(run: Path) -> None:
    page = read(write_report(run))
    summary = json.loads((run / "eval/summary.json").read_text())
    text = re.sub(r"\s+", " ", page.text)
    assert summary["statement"] in text
    for name, entry in summary["datasets"].items():
        assert f"{name}: masks ({entry['images']} images, test rows)" in text
        for protocol in ("reference", "native"):
            low, high = entry["intervals"][protocol]["iou"]
            assert f"{entry['means'][protocol]['iou']:.3f} [{low:.3f}, {high:.3f}]" in text
        assert f"pooled Dice {entry['pooled']['dice']:.3f}" in text
        assert f"IoU predicted by SAM: {entry['calibration']['error']:.3f}" in text
    assert "± 0.004" in text
    assert "± over 3 draws 0.004" in text
    assert "image_003 0.012" in text
    assert "missed 1 3.3 %" in text
    for fact in (
        "promise-train --net 'a b'",
        "c0ffee",
        "5a" * 32,
        "native close:7",
        "checkpoint",
        "net: APM_IPS_resnet",
    ):
        assert fact in text
    # Two charts of intervals, of curves; histogram, boxes, calibration and risk for each of four parts.
    assert page.tags.count("svg") == 2 + 2 + 4 * 4
    assert page.tags.count("img") == len(summary["gallery"]) == 12
    assert sum(value.startswith("data:image/jpeg;base64,") for _, value in page.attributes) == 12


def test_the_learned_estimate_replaces_that_of_sam(write_evaluation: Write, tmp_path: Path) -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(estimated_iou=rows["native_iou"])  # drops images in the ideal order

    folder = write_evaluation(tmp_path / "a", images={"kvasir": 20}, change=change)
    summary = json.loads((folder / "summary.json").read_text())
    assert "IoU predicted by SAM" in read(write_report(folder)).text
    entry = summary["datasets"]["kvasir"]
    entry["estimated_calibration"] = {**entry["calibration"], "error": 0.0625, "correlation": 0.875}
    (folder / "summary.json").write_text(json.dumps(summary))
    text = re.sub(r"\s+", " ", read(write_report(folder, overwrite=True)).text)
    error = entry["calibration"]["error"]
    assert "Mean absolute error of the estimated IoU: 0.062 (bias" in text
    assert f"Mean absolute error of the IoU predicted by SAM: {error:.3f}" in text
    page = (folder / "report.html").read_text()
    chart = next(part for part in page.split("<svg") if "of the kept images" in part)
    random, ideal, ours = re.findall(r'<polyline class="s\d line" points="(.*?)"', chart)
    assert ideal == ours != random
    assert len({point.split(",")[1] for point in random.split()}) == 1


@pytest.mark.parametrize("notices", [False, True], ids=["texts of an earlier version", "notices"])
def test_notices_are_at_the_top_and_once(notices: bool, run: Path) -> None:
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    old = "etis: the net was selected on 5 of the 12 scored images; these scores are no test of it."
    other = "kvasir: 2 of the scored images are near-duplicates."
    summary["datasets"]["etis"]["seen"] = {"train": 0, "val": 5}
    summary["warnings"] = [other, old]
    if notices:
        data = {"dataset": "etis", "split": "val", "images": 5, "of": 12}
        summary["notices"] = [
            {"code": "text", "data": {"text": other}},
            {"code": "scored-images-selected-on", "data": data},
        ]
    path.write_text(json.dumps(summary))
    summary["datasets"]["etis"] |= {"empty_truths": 2}
    path.write_text(json.dumps(summary))
    text = read(write_report(run)).text
    assert text.count("the net was selected on") == 1
    assert "etis: images with an empty ground truth: 2; where the ground truth is empty" in text
    assert text.rindex("Warning") < text.index("Note ")
    expected = [
        other,
        "etis: the net was selected on 5 of the 12 scored images",
        "APM_IPS_resnet, oracle prompts: the prompts are drawn from the ground truth",
    ]
    positions = [text.index(part) for part in expected]
    assert positions == sorted(positions)
    assert positions[-1] < text.index("Results", positions[-1])
    assert text.index(summary["statement"]) > positions[-1]


def test_the_page_has_no_network_access_and_no_script(run: Path) -> None:
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
    """A run and an evaluation whose texts are all HTML."""
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


def test_texts_are_escaped(write_evaluation: Write, tmp_path: Path) -> None:
    path = write_report(evil(write_evaluation, tmp_path / "run"))
    page = read(path)
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("b") == 3  # those of the template
    assert not any(name == "onerror" for name, _ in page.attributes)
    assert page.text.count("<script>document.title='owned'</script>") > 20
    assert page.text.count("The image file is missing.") == 1
    assert "<script" not in (path.parent / "tables.md").read_text()


def test_images_come_from_the_folder_of_the_evaluation_only(run: Path, tmp_path: Path) -> None:
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    (tmp_path / "secret.png").write_bytes((run / "eval" / summary["gallery"][0]["picture"]).read_bytes())
    summary["gallery"][0]["picture"] = "../../secret.png"
    (run / "eval" / summary["gallery"][1]["picture"]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    path.write_text(json.dumps(summary))
    page = read(write_report(run))
    assert page.tags.count("img") == 10
    assert page.text.count("The image file is missing.") == 2


def test_an_evaluation_alone_and_several_of_one_net(write_evaluation: Write, tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", images={"kvasir": 5})
    b = write_evaluation(tmp_path / "b", images={"kvasir": 5, "etis": 3}, seed=1)
    page = write_report(a)
    assert page == a / "report.html"
    assert str(a) not in (a / "tables.md").read_text()
    text = read(write_report(None, [a, b], output=tmp_path / "new/both.html")).text
    assert f"APM_IPS_resnet, auto prompts ({a})" in text
    assert f"APM_IPS_resnet, auto prompts ({b})" in text
    assert "Training" not in text
    rows = (tmp_path / "new/tables.md").read_text().replace("\\", "").splitlines()
    assert sum(row.startswith(f"| APM_IPS_resnet {a} | auto") for row in rows) == 3
    assert sum(row.startswith(f"| APM_IPS_resnet {b} | auto") for row in rows) == 6


def test_an_evaluation_of_an_earlier_version_is_reported(write_evaluation: Write, tmp_path: Path) -> None:
    folder = _old(write_evaluation, tmp_path / "a")
    page = read(write_report(folder))
    assert "Not recorded by this evaluation: a calibration plot, scores by size, a gallery" in page.text
    assert "An evaluation was made by an earlier version" in page.text
    assert page.tags.count("svg") == 2  # means without intervals, and a histogram in one colour
    dice = json.loads((folder / "summary.json").read_text())["datasets"]["kvasir"]["means"]["native"]["dice"]
    assert f"{dice:.3f}" in page.text


def _old(write_evaluation: Write, folder: Path) -> Path:
    write_evaluation(folder, statement=None, gallery=None, prompt_files=None, postprocess_source=None)
    summary = json.loads((folder / "summary.json").read_text())
    keys = ("split", "images", "empty_truths", "mean_predicted_iou", "means", "seen")
    summary["datasets"] = {n: {k: entry[k] for k in keys} for n, entry in summary["datasets"].items()}
    (folder / "summary.json").write_text(json.dumps(summary))
    new = ["draw", "foreground_share", "size_class", "truth_pixels", "native_intersection", "native_predicted_pixels"]
    pd.read_csv(folder / "per_image.csv").drop(columns=new).to_csv(folder / "per_image.csv", index=False)
    return folder


def test_a_postprocessing_tuned_on_scored_images_is_reported_where_it_is_used(run: Path) -> None:
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    summary["datasets"]["etis"]["seen"] = {"train": 0, "val": 0, "tune": 3}
    for source, times in (("checkpoint", 1), ("flag", 0)):
        path.write_text(json.dumps({**summary, "postprocess_source": source}))
        text = read(write_report(run, overwrite=True)).text
        assert text.count("etis: the postprocessing was chosen on 3 of the 12 scored images") == times


def test_a_training_run_without_evaluations(run: Path) -> None:
    shutil.rmtree(run / "eval")
    shutil.rmtree(run / "eval-gt")
    page = read(write_report(run))
    assert page.tags.count("svg") == 2
    assert "promise-train --net 'a b'" in page.text
    assert "Results" not in page.text
    assert not (run / "tables.md").exists()


def test_an_earlier_report_is_replaced_only_with_overwrite(run: Path) -> None:
    write_report(run)
    before = (run / "report.html").read_bytes()
    with pytest.raises(ExistingRunError, match=r"report\.html, tables\.md, tables\.tex"):
        write_report(run)
    assert write_report(run, overwrite=True).read_bytes() == before


def test_invalid_input_is_one_clear_error(tmp_path: Path, run: Path, user_error) -> None:
    (tmp_path / "empty").mkdir()
    for folder, code in (("empty", "nothing-to-report"), ("absent", "missing-folder")):
        with user_error(code) as caught:
            write_report(tmp_path / folder)
        assert isinstance(caught.value, MissingFileError)
        assert str(tmp_path / folder) in str(caught.value)
    with user_error("not-an-html-file") as caught:
        write_report(run, output=tmp_path / "page")
    assert f"--output {tmp_path / 'page'}" in str(caught.value)
    assert ".html" in str(caught.value)
    (run / "log.csv").write_text("epoch,train_loss\n1,much\n")
    with user_error("invalid-log") as caught:
        write_report(run)
    assert str(run / "log.csv") in str(caught.value)
    (run / "environment.json").write_text("{")
    with user_error("invalid-environment") as caught:
        write_report(run)
    assert str(run / "environment.json") in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_renders_the_page(write_evaluation: Write, run: Path, tmp_path: Path) -> None:
    page, bad = write_report(run), write_report(evil(write_evaluation, tmp_path / "bad"))
    dom = browse(page, tmp_path / "profile")
    found = Page(dom)
    assert "<title>APM_IPS_resnet on lite_medsam – ProMISe report</title>" in dom
    assert found.tags.count("svg") == 20
    assert found.tags.count("img") == 12
    assert "pooled Dice" in found.text
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


def test_clicks_are_a_curve_and_a_table(write_evaluation: Write, tmp_path: Path) -> None:
    plain = write_evaluation(tmp_path / "plain", images={"kvasir": 5})
    assert "Interactive correction" not in read(write_report(None, [plain])).text
    folder = write_evaluation(tmp_path / "clicks", images={"kvasir": 5, "etis": 5})
    summary = json.loads((folder / "summary.json").read_text())
    noc = {"0.85": {"mean": 0.4, "unreached": 0.02}, "0.9": {"mean": 1.234, "unreached": 0.125}}
    own = {"dice": [0.876, 0.934, 0.955], "intervals": [[0.8, 0.9], [0.91, 0.95], None], "lowered": [0, 0], "noc": noc}
    entry = {"prompts": "oracle-corrected", "clicks": 2, "start": "auto", "net": own, "frozen_sam": None}
    summary["datasets"]["kvasir"]["clicks"] = entry
    summary["datasets"]["etis"]["clicks"] = {**entry, "frozen_sam": {**own, "dice": [0.0, 0.812, None]}}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(None, [folder]))
    assert page.text.count("Interactive correction (oracle-corrected)") == 2
    for text in ("0.934", "[0.910, 0.950]", "NoC 0.85", "1.23", "12.5 % not reached", "0.812", "not automatic"):
        assert text in page.text, text
    assert "APM_IPS_resnet, auto" in page.text
    assert page.text.count("SAM, empty mask") == 1
