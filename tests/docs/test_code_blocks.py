"""Whether the code blocks of the docs run: page by page, top to bottom, in an empty folder, on a tiny SAM.

The comments that a page may hold for this file are told in CONTRIBUTING.md.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/notebook").glob("*.md")])
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
TOKEN = re.compile(
    r"^<!-- (?P<mark>given|run with|not run|none run): *(?P<what>.*?) *-->$"
    r"|^```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# What a page leaves behind: it would be missed if a command did nothing.
LEFT = {
    "index": ("runs/quickstart/report.html", "runs/quickstart/eval/overlays"),
    "train": (
        "data/mine/data.png",
        "runs/mine/eval/summary.json",
        "runs/mine/box/summary.json",
        "runs/mine/report.html",
    ),
    "data": ("data/mine/split.csv", "original_size", "data.png", "data.json", "samples/split.csv"),
    "evaluate": (
        "runs/mine/eval/overlays",
        "runs/sam-centre/summary.json",
        "runs/mine/again/summary.json",
        "runs/mine/clicks/clicks.csv",
        "runs/mine/custom/summary.json",
        "compared.json",
        "report.html",
        "baselines/report.html",
    ),
    "predict": ("masks/masks/phantom_0000.png", "test/contours.json", "corrected/masks/phantom_0002.png"),
    "extend": ("runs/map/best.safetensors", "runs/map/eval/prompts.json"),
}


@dataclass(frozen=True)
class Block:
    """A code block of a page, or commands that a page takes for given."""

    language: str
    code: str
    line: int
    skipped: str | None  # the reason why it is not run


def blocks_of(page: Path) -> list[Block]:
    """The page's blocks in order, with the page's replacements made."""
    text = page.read_text(encoding="utf-8")
    swaps: list[tuple[str, str]] = []
    blocks = []
    reason: str | None = None
    for found in TOKEN.finditer(text):
        mark, what = found["mark"], found["what"]
        line = text[: found.start()].count("\n") + 1
        if mark == "run with":
            new = [tuple(swap.split(" → ")) for swap in what.split("; ")]
            for old, _ in new:
                assert text.count(old) > what.count(old), f"{page.name}:{line}: {old!r} stands nowhere"
            swaps += new
        elif mark == "none run":
            return []
        elif mark == "not run":
            assert what, f"{page.name}:{line}: why is it not run?"
            assert re.match(r"\n+```", text[found.end() :]), f"{page.name}:{line}: no block below"
            reason = what
        else:
            code = what + "\n" if mark == "given" else found["code"]
            for old, new_text in swaps:
                code = code.replace(old, new_text)
            blocks.append(Block(found["language"] or "bash", code, line, reason))
            reason = None
    return blocks


def lines_of(code: str) -> list[str]:
    joined = (line.strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in joined if line and not line.startswith("#")]


def words_of(line: str) -> tuple[str, list[str], str | None]:
    """A command of ours → its name, its arguments with file patterns expanded, the file it prints to."""
    name, *words = shlex.split(line, comments=True)
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    found = [sorted(str(path) for path in Path().glob(word)) if "*" in word else [] for word in words]
    return name, [path for word, paths in zip(words, found, strict=True) for path in paths or [word]], target


def module_of(name: str) -> Any:
    return importlib.import_module(SCRIPTS[name].partition(":")[0])


def run_line(line: str, where: str) -> None:
    if line.split(maxsplit=1)[0] not in SCRIPTS:
        done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
        return
    name, words, target = words_of(line)
    with contextlib.ExitStack() as stack:
        if target is not None:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(target).open("w"))))
        assert module_of(name).main(words) == 0, f"{where}: {line}"
    forget_accelerate()


def forget_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def tables() -> Iterator[None]:
    """Nets and backbones that a page adds are gone afterwards."""
    from promise.models import registry
    from promise.models.sam.backbones import BACKBONES

    kept = [(table, dict(table)) for table in (registry.NETS, registry._SHORT, BACKBONES)]
    yield
    for table, content in kept:
        table.clear()
        table.update(content)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.filterwarnings("ignore:SAM .* has random weights:RuntimeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, tables: None, tiny_vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        if block.skipped is not None:
            continue
        if block.language == "python":
            exec(compile(block.code, where, "exec"), names)
            forget_accelerate()
        else:
            for line in lines_of(block.code):
                run_line(line, where)
    for left in LEFT.get(page.stem, ()):
        assert (tmp_path / left).exists(), left


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_is_sound_all_the_same(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (block for block in blocks_of(page) if block.skipped is not None):
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            compile(block.code, where, "exec")
            continue
        if shutil.which("bash"):
            done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{where}: {done.stderr}"
        for line in lines_of(block.code):
            command = re.sub(r"^(?:accelerate launch|torchrun) .*?-m promise\.cli\.(\w+)", r"promise-\1", line)
            if command.startswith("promise-"):
                name, words, _ = words_of(re.sub(r"\$\w+", "1", command))  # what a variable holds, only a shell knows
                module_of(name).make_parser().parse_args(words)  # exits where a flag is unknown


def test_most_is_run() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert sum(block.skipped is None for block in blocks) >= 15
    assert {block.language for block in blocks if block.skipped is None} == {"bash", "python"}
