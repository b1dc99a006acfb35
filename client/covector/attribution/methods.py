"""The methods that learn something of the rows before they score, and what each needs. ``scoring`` has the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from covector.attribution.scoring import SAME_CORRECTION, CorrectionPairs, EtaRule, scorer_names
from covector.errors import InvalidInput, NotFound, near_matches

Weight = Literal["one", "trak_q", "inverse_norm", "inverse_whitened_norm"]
Curvature = Literal["none", "moments", "mean_of_inverses"]

MEAN_EIGENVALUE = "mean nonzero eigenvalue"
MEAN_SQUARE = "mean squared gradient entry"


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table in docs/design/016.

    ``curvature``: what A inverts: nothing, the damped second moments of the rows, or, for DataInf, each row's own
    damped moment (the mean of the inverses in place of the inverse of the mean). ``weight``: w of a row, and n of a
    query where it is a norm. ``damping``: the default, in ``damping_unit``. ``over_rows``: A is divided by the number
    of rows, as where a formula has the sum of moments and not their mean.
    """

    name: str
    curvature: Curvature
    weight: Weight
    etas: EtaRule
    damping: float = 1.0
    damping_unit: str = MEAN_EIGENVALUE
    corrections: CorrectionPairs = SAME_CORRECTION
    over_rows: bool = False
    by_layer: bool = False
    takes_task: bool = False


_METHODS = {
    method.name: method
    for method in (
        Method("trak", "moments", "trak_q", "equal", over_rows=True),
        Method("influence", "moments", "one", "several"),
        Method("datainf", "mean_of_inverses", "one", "several", 0.1, MEAN_SQUARE, by_layer=True),
        Method("trackstar", "moments", "inverse_whitened_norm", "several", takes_task=True),
        Method("less", "none", "inverse_norm", "shares", corrections=frozenset({("adam", "none")})),
    )
}


def method_names() -> list[str]:
    """The names of all methods that ``fit`` takes."""
    return list(_METHODS)


def method_named(name: str) -> Method:
    """The method of this name. Raises NotFound with the near matches, InvalidInput for a scorer that needs no fit."""
    if name in _METHODS:
        return _METHODS[name]
    if name in scorer_names():
        raise InvalidInput(f"{name} learns nothing: score with it directly, without a fit", method=name)
    raise NotFound(f"no method {name!r} to fit; {near_matches(name, _METHODS)}", method=name)
