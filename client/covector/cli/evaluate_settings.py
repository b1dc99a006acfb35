"""What ``covector evaluate`` compares: scorers, each with the dampings that are asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from covector.attribution import method_names, scorer_names
from covector.attribution.held_out import HELD_OUT
from covector.attribution.methods import method_named
from covector.cli.fit_options import damping_number
from covector.errors import InvalidInput

AROUND = (0.1, 1.0, 10.0)  # times a method's default damping
_UNIT_ROWS = {"trak", "influence"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A scorer, by name, and what may be chosen of it. ``damping`` is None where nothing is damped, and for a fit that
    the server has."""

    scorer: str
    damping: float | str | None = None
    unit_rows: bool = False
    rank: int | None = None
    by_layer: bool | None = None

    @property
    def is_fit(self) -> bool:
        """Whether it is learnt from rows."""
        return self.scorer in method_names() and self.damping is not None

    @property
    def label(self) -> str:
        """As people read it."""
        damping = f"{self.damping:g}" if isinstance(self.damping, float) else self.damping
        parts = [self.scorer, "" if damping is None else f"damping {damping}"]
        parts += [f"rank {self.rank}" if self.rank and self.is_fit else "", "unit rows" if self.unit_rows else ""]
        return ", ".join(part for part in parts if part)

    def chosen(self, damping: float) -> str:
        """The label, with the damping that was taken."""
        return self.label if self.damping != HELD_OUT else f"{replace(self, damping=damping).label} ({HELD_OUT})"

    @property
    def options(self) -> dict[str, Any]:
        """Of ``attribution.fit`` and of ``Collection.fit``."""
        options = {"damping": self.damping, "rank": self.rank, "unit_rows": self.unit_rows, "by_layer": self.by_layer}
        return {name: value for name, value in options.items() if value not in (None, False) or name == "by_layer"}


def settings_of(given: argparse.Namespace, has_trak_q: bool, has_blocks: bool) -> list[Setting]:
    """Everything that is to be compared, each once. Raises InvalidInput for a damping that is none."""
    names = given.scorer or _usual(has_trak_q, has_blocks)
    found: list[Setting] = []
    for name in names:
        found += _of_scorer(name, given)
    return list(dict.fromkeys(found))


def _usual(has_trak_q: bool, has_blocks: bool) -> Sequence[str]:
    return ["dot", "cosine", "influence", *(["trak"] if has_trak_q else []), *(["datainf"] if has_blocks else [])]


def _of_scorer(name: str, given: argparse.Namespace) -> list[Setting]:
    if name in scorer_names() or name not in method_names():
        return [Setting(name)]  # what is no method may be the id of a fit
    method = method_named(name)
    dampings = [HELD_OUT if one == HELD_OUT else damping_number(one) for one in given.damping]
    if not dampings:
        dampings = [method.damping * times for times in AROUND]
    variants = (False, True) if given.unit_rows and name in _UNIT_ROWS else (False,)
    by_layer = False if given.one_layer and name == "datainf" else None
    if given.rank is not None and given.rank < 1:
        raise InvalidInput(f"--rank is at least 1, not {given.rank}", field="rank")
    return [Setting(name, damping, unit_rows, given.rank, by_layer) for unit_rows in variants for damping in dampings]
