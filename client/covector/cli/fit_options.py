"""The options of a method that more than one command has."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from covector.attribution.held_out import HELD_OUT
from covector.errors import InvalidInput


def damping_of(given: Sequence[str] | None) -> float | str | list[float] | None:
    """What ``--damping`` says, as ``Collection.fit`` takes it. Raises InvalidInput for what is no number."""
    if not given:
        return None
    if list(given) == [HELD_OUT]:
        return HELD_OUT
    values = [damping_number(one) for one in given]
    return values if len(values) > 1 else values[0]


def damping_number(given: str) -> float:
    """One number. Raises InvalidInput."""
    try:
        return float(given)
    except ValueError:
        raise InvalidInput(f"--damping is a number or {HELD_OUT}, not {given!r}", field="damping") from None


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Adds ``by_layer`` as a pair of options."""
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument(
        "--by-layer", action="store_true", default=None, help="fit each layer of the space alone (datainf always does)"
    )
    layers.add_argument(
        "--one-layer",
        action="store_false",
        dest="by_layer",
        help="treat all coordinates as one layer, for datainf where the space has no blocks",
    )
