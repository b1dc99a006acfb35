"""Figures of a benchmark: a value, what it should be, and where the results are written."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """``value`` None: it could not be measured, ``detail`` says why. ``at_least`` and ``at_most`` None: reported only.
    low, high: the smallest and the largest of the rounds."""

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None
    low: float | None = None
    high: float | None = None
    detail: str = ""

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def verdict(self) -> str:
        """Met, not met, or empty where there is no target."""
        if not self.target:
            return ""
        if self.value is None:
            return "not measured"
        short = self.at_least is not None and self.value < self.at_least
        past = self.at_most is not None and self.value > self.at_most
        return "NOT met" if short or past else "met"


def ratio(name: str, above: Sequence[float], below: Sequence[float], **rest: Any) -> Figure:
    """The median of the rounds' ratios: the two were measured one after the other in each."""
    return spread(name, [a / b for a, b in zip(above, below, strict=True)], **rest)


def spread(name: str, values: Sequence[float], **rest: Any) -> Figure:
    """The median of the rounds, with the smallest and the largest."""
    return Figure(name, statistics.median(values), low=min(values), high=max(values), **rest)


def line(figure: Figure) -> str:
    """A figure for the terminal."""
    numbers = "-" if figure.value is None else _number(figure.value) + _range(figure)
    return f"{figure.name}: {numbers}" + "".join(f"; {part}" for part in (figure.target, figure.verdict) if part)


def table(figures: Sequence[Figure]) -> str:
    """The figures in Markdown."""
    rows = ["| figure | value (min to max) | target | | |", "|---|---|---|---|---|"]
    for figure in figures:
        value = "-" if figure.value is None else _number(figure.value) + _range(figure)
        rows.append(f"| {figure.name} | {value} | {figure.target} | {figure.verdict} | {figure.detail} |")
    return "\n".join(rows) + "\n"


def write(directory: Path, figures: Sequence[Figure], settings: dict[str, Any], name: str = "ingest") -> None:
    """Puts the figures into NAME.json and NAME.md; those of the same names that stand there are replaced."""
    path = directory / f"{name}.json"
    known: dict[str, Any] = {}
    if path.exists():
        known = {entry["name"]: entry for entry in json.loads(path.read_text())["figures"]}
    run = {"settings": settings, "machine": machine()}
    known |= {figure.name: asdict(figure) | {"verdict": figure.verdict, "run": run} for figure in figures}
    path.write_text(json.dumps({"figures": list(known.values())}, indent=1) + "\n")
    shown = [Figure(**{name: entry[name] for name in Figure.__slots__}) for entry in known.values()]
    (directory / f"{name}.md").write_text(_HEADER.format(name=name, title=name.capitalize()) + table(shown))


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "grpcio": version("grpcio") if find_spec("grpc") else None,
    }


_HEADER = """# {title}

Written by benchmarks/{name}.py, which says how each figure is measured. Ratios are medians over rounds in which both
sides ran one after the other; the settings and the machine of each figure are in {name}.json.

"""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _range(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f" ({_number(figure.low)} to {_number(figure.high)})"
