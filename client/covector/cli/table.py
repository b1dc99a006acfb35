"""Tables for people, as wide as the terminal, the last column cut to fit; and values as people read them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from covector.types import Damage


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Prints columns; numbers to the right, words to the left."""
    lines = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(head), *lines]) for column in range(len(head))]
    numeric = [all(_is_number(line[column]) for line in lines) for column in range(len(head))]
    room = max(20, shutil.get_terminal_size((100, 24)).columns - len(indent) - sum(widths[:-1]) - 2 * len(widths[:-1]))
    for line in [list(head), *lines]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line[:-1], widths[:-1], numeric[:-1], strict=True)
        ]
        print(indent + "  ".join([*cells, _cut(line[-1], room)]).rstrip())


def _one_line(text: str) -> str:
    """Text without line breaks, and without characters that could move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _is_number(cell: str) -> bool:
    return bool(cell) and set(cell) <= set("0123456789.,+-e")


def said(value: object) -> str:
    """A value of a result as people read it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {said(one)}" for name, one in value.items()) or "none"
    return str(value)


def said_bytes(size_bytes: int) -> str:
    """A size as people read it, in powers of 1024."""
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size_bytes:,} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def said_damage(damage: Damage) -> str:
    """Damage in one line."""
    at = "" if damage.checkpoint is None else f" at {damage.checkpoint}"
    return f"{damage.row_count:,} rows{at}: {damage.path}: {damage.message}"
