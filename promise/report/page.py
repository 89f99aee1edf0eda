"""Write the HTML report of a run and its evaluations; the page loads nothing and runs no script."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from promise import __version__
from promise.evaluation.reader import Evaluation, find_evaluations, read_evaluation
from promise.report import charts
from promise.report.details import describe_dataset, embed_galleries
from promise.report.facts import Run, notices, provenance_of_evaluation, provenance_of_run, read_run
from promise.report.tables import Table, interval, number, result_tables
from promise.runtime.errors import ExistingRunError, MissingFileError, UserError
from promise.runtime.files import write_text


def write_report(
    run: Path | None, evaluations: Sequence[Path] = (), *, output: Path | None = None, overwrite: bool = False
) -> Path:
    """Write ``report.html`` with ``tables.md`` and ``tables.tex`` beside it.

    Args:
        run: folder of a training run, whose evaluations are included, or folder of an evaluation.
        evaluations: more folders of evaluations.
        output: path of the page; default: ``report.html`` in ``run``, else in the first evaluation.
        overwrite: replace an earlier report.

    Returns:
        The path of the page.

    Raises:
        MissingFileError: the folders do not exist or hold no results.
        ExistingRunError: a report exists already.
        UserError: damaged files, or ``output`` is not an .html file.
    """
    record = None if run is None else read_run(run)
    folders = list(dict.fromkeys([*([] if run is None else find_evaluations(run)), *evaluations]))
    if record is None and not folders:
        details = "" if run is None else f" {run} contains neither a training run nor an evaluation."
        raise MissingFileError(
            f"nothing to report.{details} Give a run's folder, or --eval FOLDER.", code="nothing-to-report"
        )
    found = _distinguish([read_evaluation(folder) for folder in folders])
    page = output or (run or found[0].folder) / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {page} must end in .html.", code="not-an-html-file")
    files = [page, page.with_name("tables.md"), page.with_name("tables.tex")]
    present = [path.name for path in files if path.exists()]
    if present and not overwrite:
        raise ExistingRunError(
            f"{page.parent} already holds {', '.join(present)}. Use --overwrite, or choose another --output.",
            code="existing-report",
        )
    tables = {name: result_tables(found, name) for name in _datasets(found)}
    flat = [table for some in tables.values() for table in some]
    write_text(page, _render(record, found, tables))
    if flat:
        write_text(files[1], "\n".join(table.markdown() for table in flat))
        write_text(files[2], "\n".join(table.latex() for table in flat))
    return page


def _distinguish(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Add the folder to the titles of evaluations of the same net and prompts."""
    count = Counter(e.title for e in evaluations)
    return [dataclasses.replace(e, mark=str(e.folder)) if count[e.title] > 1 else e for e in evaluations]


def _datasets(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(name for e in evaluations for name in e.summary["datasets"]))


def _render(run: Run | None, evaluations: Sequence[Evaluation], tables: dict[str, list[Table]]) -> str:
    environment = Environment(
        loader=PackageLoader("promise", "report"),
        autoescape=True,  # texts from files contain no markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style, _, _ = loader.get_source(environment, "style.css")
    galleries = embed_galleries(evaluations)
    statements = list(dict.fromkeys(str(e.summary["statement"]) for e in evaluations if e.summary.get("statement")))
    return environment.get_template("page.html.j2").render(
        title=_title(run, evaluations),
        style=Markup(style),  # a file of this package
        version=__version__,
        notices=notices(run, evaluations),
        statements=statements,
        overview=_overview(evaluations),
        tables=tables,
        markdown="\n".join(table.markdown() for some in tables.values() for table in some),
        latex="\n".join(table.latex() for some in tables.values() for table in some),
        curves=[] if run is None else _curves(run),
        details=[
            (e.title, str(e.folder), [describe_dataset(e, name, galleries) for name in e.summary["datasets"]])
            for e in evaluations
        ],
        provenance=[
            *([("Training", provenance_of_run(run))] if run else []),
            *((f"Evaluation: {e.title}", provenance_of_evaluation(e)) for e in evaluations),
        ],
        config="" if run is None else run.config,
    )


def _title(run: Run | None, evaluations: Sequence[Evaluation]) -> str:
    if evaluations:
        return f"{evaluations[0].summary['net']} on {evaluations[0].summary.get('sam', 'SAM')}"
    assert run is not None
    return f"{run.metadata.get('net', run.folder.name)} on {run.metadata.get('sam', 'SAM')}"


# --- the overview ---------------------------------------------------------------------------------


def _overview(evaluations: Sequence[Evaluation]) -> list[tuple[str, Markup]]:
    """One chart per data set: mean native Dice of every evaluation, with its interval."""
    found = []
    for name in _datasets(evaluations):
        rows = []
        for e in evaluations:
            entry = e.summary["datasets"].get(name)
            mean = None if entry is None else entry["means"]["native"].get("dice")
            if entry is None or not isinstance(mean, int | float):
                continue
            bounds = ((entry.get("intervals") or {}).get("native") or {}).get("dice")
            text = f"{number(mean)} {interval(bounds)}".rstrip()
            limits = (bounds[0], bounds[1]) if bounds and interval(bounds) else None
            rows.append((e.title, text, float(mean), limits))
        if rows:
            x = "native Dice, mean and 95 % interval"
            found.append((name, charts.intervals(rows, title=f"Mean Dice on {name}", x=x)))
    return found


def _curves(run: Run) -> list[Markup]:
    drawn = []
    for title, unit, names in (
        ("Loss", False, (("train_loss", "training", "s1"), ("val_loss", "validation", "s4"))),
        ("Validation scores", True, (("val_dice", "Dice", "s1"), ("val_iou", "IoU", "s4"))),
    ):
        series = [
            charts.Series(
                label,
                [(epoch, v) for row in run.history if (v := row.get(name)) is not None and (epoch := row.get("epoch"))],
                style,
            )
            for name, label, style in names
        ]
        series = [one for one in series if one.values]
        if series:
            mark = run.metadata.get("epoch")
            drawn.append(charts.lines(series, title=title, x=f"{title} by epoch", unit=unit, mark=mark))
    return drawn
