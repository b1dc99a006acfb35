"""Which scores are best here? Several of them, judged by the same retrained models.

    found = evaluate({"dot": dot, "trak": trak}, masks, outputs)
    found.chosen.name, found.chosen.test                    # chosen on half of the subsets, reported on the other half

Whoever takes the best of many by the numbers that they report flatters it; so the choice is made on one half of the
subsets, drawn by ``seed``, and what it is worth is told of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covector.attribution.evaluation import RESAMPLES, LdsResult, lds
from covector.attribution.scoring import Float64
from covector.errors import InvalidInput

SUBSETS_MIN = 10  # below it a bootstrap over subsets says nothing
SUBSETS_SPLIT_MIN = 2 * SUBSETS_MIN

Scores = Mapping[str, npt.ArrayLike] | Iterable[tuple[str, npt.ArrayLike]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What scores are worth by all subsets (``lds``), by those that the choice is made on (``choice``), and by the
    others (``test``); the last two are None where there are too few subsets to halve."""

    name: str
    lds: LdsResult
    choice: LdsResult | None
    test: LdsResult | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``judged``: in the order given. ``chosen``: the best by the half of the subsets that the choice is made on, None
    where they were not halved. ``constant_queries``: numbers of the queries left out since all models gave the same
    output for them. ``idle_row_count``: rows that are in every subset or in none: nothing can be said of their scores.
    ``confidence``: of the intervals."""

    judged: tuple[Judged, ...]
    chosen: Judged | None
    subset_count: int
    query_count: int
    constant_queries: tuple[int, ...]
    idle_row_count: int
    confidence: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the numbers came about."""
        found = []
        if self.constant_queries:
            numbers = ", ".join(map(str, self.constant_queries[:8])) + (", ..." if self.constant_queries[8:] else "")
            found.append(
                f"{len(self.constant_queries)} queries are left out, since every model gave the same output for them, "
                f"and the LDS is not defined there: {numbers}"
            )
        if self.idle_row_count:
            found.append(f"{self.idle_row_count} rows are in every subset or in none, so their scores are not judged")
        if self.chosen is None:
            found.append(
                f"{self.subset_count} subsets are too few to choose on one half and report on the other; "
                f"{SUBSETS_SPLIT_MIN} are needed"
            )
        if all(one.lds.high < 0 for one in self.judged):
            found.append(
                "every score foretells the opposite of what happened: outputs must be larger where the behaviour is "
                "stronger (a margin, or minus a loss)"
            )
        return tuple(found)


def evaluate(
    scores: Scores,
    masks: npt.ArrayLike,
    outputs: npt.ArrayLike,
    *,
    halve: bool = True,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """The linear datamodelling score (``lds``) of each of several scores, with its bootstrap interval over subsets, and
    which of them is best.

    scores: by name, float[m, n], of m queries and n rows; a mapping, or pairs that are made one after the other, so
    that one array exists at a time. masks: bool[s, n]; outputs: float[s, m], or float[models, s, m] of several models a
    subset, whose mean counts; larger where the behaviour is stronger. ``halve``: choose on one half of the subsets and
    report on the other. Raises InvalidInput for what does not fit, values that are not finite, fewer than 10 subsets,
    and outputs that never change.
    """
    member, told = checked_masks(masks), _told(outputs)
    _check_fit(member, told)
    kept, constant = _changing(told)
    order = np.random.default_rng(seed).permutation(len(member))
    half = len(member) // 2
    halves = (order[:half], order[half:]) if halve and len(member) >= SUBSETS_SPLIT_MIN else None

    def judge(wide: Float64, subsets: npt.NDArray[np.intp], draws: int) -> LdsResult:
        return lds(wide, member[subsets], kept[subsets], confidence=confidence, resamples=draws, seed=seed)

    judged = []
    for name, given in scores.items() if isinstance(scores, Mapping) else scores:
        wide = np.delete(_checked_scores(name, given, member, told), constant, axis=0)
        choice = None if halves is None else judge(wide, halves[0], 0)
        test = None if halves is None else judge(wide, halves[1], resamples)
        judged.append(Judged(name, judge(wide, order, resamples), choice, test))
    if not judged:
        raise InvalidInput("there are no scores to compare; give at least one", field="scores")
    idle = int((member == member[0]).all(axis=0).sum())
    return Evaluation(
        judged=tuple(judged),
        chosen=None if halves is None else max(judged, key=_by_choice),
        subset_count=len(member),
        query_count=kept.shape[1],
        constant_queries=tuple(constant.tolist()),
        idle_row_count=idle,
        confidence=confidence,
    )


def checked_masks(masks: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Masks as bool[subsets, rows]. Raises InvalidInput for another shape, values but 0 and 1, too few subsets, and
    subsets that are all the same."""
    given = np.asarray(masks)
    if given.ndim != 2:
        raise InvalidInput(f"masks must be bool[subsets, rows], not of shape {list(given.shape)}", field="masks")
    if given.dtype != np.bool_:
        wrong = np.argwhere((given != 0) & (given != 1))
        if len(wrong):
            subset, row = wrong[0].tolist()
            raise InvalidInput(
                f"masks are not boolean: subset {subset} has {given[subset, row]} at row {row}; a mask is 1 (or true) "
                "where the row is in the subset, else 0",
                field="masks",
            )
    if len(given) < SUBSETS_MIN:
        raise InvalidInput(
            f"{len(given)} subsets are too few for an interval; train on at least {SUBSETS_MIN}, better 50",
            field="masks",
        )
    member = given.astype(np.bool_)
    if (member == member[0]).all():
        raise InvalidInput("all subsets are the same, so they say nothing of single rows; draw random ones")
    return member


def _told(outputs: npt.ArrayLike) -> Float64:
    """Outputs as float64[subsets, queries]."""
    given = np.asarray(outputs)
    if given.ndim not in (2, 3) or given.dtype.kind not in "fiub":
        raise InvalidInput(
            "outputs must be float[subsets, queries], or float[models, subsets, queries], not "
            f"{given.dtype}{list(given.shape)}",
            field="outputs",
        )
    bad = np.argwhere(~np.isfinite(given))
    if len(bad):
        *models, subset, query = bad[0].tolist()
        at = f"model {models[0]}, " if models else ""
        raise InvalidInput(
            f"outputs hold NaN or infinity, first at {at}subset {subset}, query {query}; leave that model out, or "
            "train it again",
            field="outputs",
        )
    wide = given.astype(np.float64)
    return np.asarray(wide.mean(axis=0) if wide.ndim == 3 else wide)


def _check_fit(member: npt.NDArray[np.bool_], told: Float64) -> None:
    if len(member) != len(told):
        raise InvalidInput(
            f"masks have {len(member)} subsets, outputs {len(told)}; a model's outputs are needed for each subset, in "
            "the order of the masks",
            field="outputs",
        )
    if not told.shape[1]:
        raise InvalidInput("outputs are of no queries; give at least one", field="outputs")


def _changing(told: Float64) -> tuple[Float64, npt.NDArray[np.intp]]:
    """The outputs of the queries for which models differ, and the numbers of the others."""
    constant = np.flatnonzero((told == told[0]).all(axis=0))
    if len(constant) == told.shape[1]:
        raise InvalidInput(
            "every model gave the same output for every query, so there is nothing to foretell; look at how outputs "
            "are taken",
            field="outputs",
        )
    return np.delete(told, constant, axis=1), constant


def _checked_scores(name: str, given: npt.ArrayLike, member: npt.NDArray[np.bool_], told: Float64) -> Float64:
    wide = np.asarray(given, dtype=np.float64)
    expected = (told.shape[1], member.shape[1])
    if wide.shape != expected:
        raise InvalidInput(
            f"the scores of {name!r} have shape {list(wide.shape)}; masks have {expected[1]} rows and outputs "
            f"{expected[0]} queries, so they must be {list(expected)}",
            field="scores",
        )
    bad = np.argwhere(~np.isfinite(wide))
    if len(bad):
        query, row = bad[0].tolist()
        raise InvalidInput(f"the scores of {name!r} hold NaN or infinity, first at query {query}, row {row}")
    return wide


def _by_choice(one: Judged) -> float:
    assert one.choice is not None
    return one.choice.mean


def ordered(found: Evaluation) -> Sequence[Judged]:
    """From the best to the worst by all subsets."""
    return sorted(found.judged, key=lambda one: -one.lds.mean)
