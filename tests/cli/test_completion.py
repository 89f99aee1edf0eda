"""The command promise-completion: scripts with every command and flag."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from promise.cli import completion
from promise.cli.argparse_adapter import list_flags

ROOT = Path(__file__).parents[2]
COMMANDS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"])


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    pytest.importorskip("shtab")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text, **_options: printed.append(text))
        texts = {}
        for shell in completion.SHELLS:
            assert completion.main([shell]) == 0
            texts[shell], printed[:] = "\n".join(printed) + "\n", []
    return texts


def complete(script: str, *words: str) -> list[str]:
    """Return the completions that bash offers for the last word."""
    request = f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n"
    request += f'_shtab_{words[0].replace("-", "_")}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    done = subprocess.run(["bash"], input=script + request, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_every_command_has_a_parser_of_its_name() -> None:
    assert {parser.prog for parser in completion.command_parsers()} == set(COMMANDS)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_flag_is_in_the_script(scripts: dict[str, str], shell: str) -> None:
    for parser in completion.command_parsers():
        for flag in list_flags(parser):
            assert flag in scripts[shell], (parser.prog, flag)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_has_valid_syntax(scripts: dict[str, str], shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(scripts[shell], encoding="utf-8")
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("promise-train", "--split"), ["--split-csv"]),
        (("promise-train", "--net", "APM_r"), ["APM_resnet"]),
        (("promise-train", "--loss", "bce", "--sam", "lite"), ["lite_medsam"]),
        (("promise-eval", "--split-csv", "a.csv", "--over"), ["--overlays", "--overwrite"]),
        (("promise-eval", "--empty-masks", "s"), ["skip"]),
        (("promise-cache", "pr"), ["prune"]),
        (("promise-cache", "prune", "--old"), ["--older-than"]),
        (("promise-completion", "b"), ["bash"]),
        (("promise-report", ""), []),  # bash completes files
    ],
    ids=" ".join,
)
def test_bash_completes(scripts: dict[str, str], words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(scripts["bash"], *words) == offered


def test_other_values_are_completed_as_files(scripts: dict[str, str]) -> None:
    for command in COMMANDS:
        assert (
            f"complete -o bashdefault -o default -F _shtab_{command.replace('-', '_')} {command}\n" in scripts["bash"]
        )
    assert '"--split-csv[split CSVs, one per data set]:FILE:_files"' in scripts["zsh"]


def test_another_shell_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        completion.main(["csh"])
    assert caught.value.code == 2
    assert "invalid choice: 'csh'" in capsys.readouterr().err
