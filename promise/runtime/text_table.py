"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table. Columns of numbers are aligned right, other columns left.

    Args:
        header: column titles.
        rows: cells of each row, as many as there are titles. ``-`` and ``nan`` count as numbers.
    """
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if _is_number(cell) or (number and cells is header) else cell.ljust(width)
            for cell, width, number in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join((line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)))


def _is_number(text: str) -> bool:
    return text in ("-", "nan") or text.replace(".", "", 1).replace("-", "", 1).isdigit()
