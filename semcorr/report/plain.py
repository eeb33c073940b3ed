"""The tables of summary.md for a terminal: aligned, and at most 100 columns wide."""

import re
import textwrap

WIDTH = 100


def plain(markdown: str) -> str:
    """The text of summary.md with each table aligned; a star marks what is bold there.

    Columns with one value are said once, above the table; the last ones are left out where there is no room.
    """
    lines, parts, rows = markdown.splitlines(), [], []
    for line in [*lines, ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if rows:
            parts += _aligned(rows)
            rows = []
        parts += textwrap.wrap(line.removeprefix("### ").replace("Bold:", "*:"), WIDTH) or [""]
    return "\n".join(parts).strip() + "\n"


def _aligned(rows: list[list[str]]) -> list[str]:
    head, _, *body = rows
    names = [_short(name) for name in head]
    columns = [[name, *(re.sub(r"\*\*(.+)\*\*", r"\1*", row[at]) for row in body)] for at, name in enumerate(names)]
    said = [f"{name} {values[0]}" for name, *values in columns[:3] if len(set(values)) == 1 and len(body) > 1]
    shown = [column for at, column in enumerate(columns) if at >= 3 or len(set(column[1:])) > 1 or len(body) == 1]
    axes = len(shown) - len(columns[3:])
    # Where there is no star, a space, so that digits stand below each other.
    shown[axes:] = [[cell if cell.endswith("*") else f"{cell} " for cell in column] for column in shown[axes:]]
    widths = [max(map(len, column)) for column in shown]
    while sum(widths) + 2 * len(widths) > WIDTH and len(widths) > axes + 1:
        shown.pop()
        widths.pop()
    lines = []
    for row in zip(*shown, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:axes], widths[:axes], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[axes:], widths[axes:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return [*(textwrap.wrap(f"{', '.join(said)}:", WIDTH) + [""] if said else []), *lines]


def _short(name: str) -> str:
    """A heading in fewer letters."""
    name = re.sub(r"PCK@[\d.]+( per \w+|, reference \w+)", r"\1", name).strip(", ")
    return name.replace("reference", "ref.").replace("95 % interval of PCK", "95 % of ")
