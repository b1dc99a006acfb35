"""Which scores are best: against Spearman's correlation a subset and a query at a time, and against what they must
refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_lds import plain_lds

from covector.attribution import Evaluation, SubsetRecipe, evaluate, trained_outputs
from covector.attribution.scoring import Float64
from covector.errors import Conflict, Corrupt, InvalidInput

RNG = np.random.default_rng(0)
ROWS, QUERIES, SUBSETS = 40, 5, 60
TRUE: Float64 = RNG.standard_normal((QUERIES, ROWS))
MASKS = RNG.random((SUBSETS, ROWS)) < 0.5
OUTPUTS: Float64 = np.asarray(MASKS @ TRUE.T + 3 * RNG.standard_normal((SUBSETS, QUERIES)), dtype=np.float64)
POOR = TRUE + 3 * RNG.standard_normal(TRUE.shape)


def by_hand(scores: Any, masks: Any, outputs: Any) -> Float64:
    return np.asarray(plain_lds(scores, masks * 1.0, outputs), dtype=np.float64)


def test_each_score_is_judged_and_the_best_is_reported_on_subsets_that_did_not_choose() -> None:
    found = evaluate({"poor": POOR, "true": TRUE}, MASKS, OUTPUTS, resamples=50, seed=3)
    order = np.random.default_rng(3).permutation(SUBSETS)
    ours, others = order[: SUBSETS // 2], order[SUBSETS // 2 :]
    for one, scores in zip(found.judged, (POOR, TRUE), strict=True):
        assert one.choice is not None
        assert one.test is not None
        np.testing.assert_allclose(one.lds.by_query, by_hand(scores, MASKS, OUTPUTS))
        assert one.choice.mean == pytest.approx(by_hand(scores, MASKS[ours], OUTPUTS[ours]).mean())
        assert one.test.mean == pytest.approx(by_hand(scores, MASKS[others], OUTPUTS[others]).mean())
        assert one.test.low < one.test.high
    assert found.chosen is not None
    assert found.chosen.name == "true"
    assert (found.subset_count, found.query_count, found.notes) == (SUBSETS, QUERIES, ())


def test_scores_may_be_made_one_after_the_other() -> None:
    made = []

    def pairs() -> Any:
        for name in ("a", "b"):
            made.append(name)
            yield name, TRUE

    assert [one.name for one in evaluate(pairs(), MASKS, OUTPUTS, resamples=5).judged] == made == ["a", "b"]


def test_several_models_of_a_subset_count_by_their_mean() -> None:
    models = np.stack([OUTPUTS + 1, OUTPUTS - 1 + 0.1 * RNG.standard_normal(OUTPUTS.shape)])
    several, one = (evaluate({"true": TRUE}, MASKS, told, resamples=5) for told in (models, models.mean(axis=0)))
    np.testing.assert_array_equal(several.judged[0].lds.by_query, one.judged[0].lds.by_query)


def test_queries_whose_outputs_never_change_are_left_out_and_named() -> None:
    flat = OUTPUTS.copy()
    flat[:, [1, 3]] = 2.5
    found = evaluate({"true": TRUE}, MASKS, flat, resamples=5)
    rest = [0, 2, 4]
    np.testing.assert_allclose(found.judged[0].lds.by_query, by_hand(TRUE[rest], MASKS, OUTPUTS[:, rest]))
    assert found.constant_queries == (1, 3)
    assert "2 queries are left out" in found.notes[0]
    assert ": 1, 3" in found.notes[0]


def test_what_a_reader_should_know_is_noted() -> None:
    masks = MASKS.copy()
    masks[:, 7], masks[:, 9] = True, False
    assert "2 rows are in every subset or in none" in evaluate({"true": TRUE}, masks, OUTPUTS, resamples=5).notes[0]
    few = evaluate({"true": TRUE}, MASKS[:19], OUTPUTS[:19], resamples=5)
    assert few.chosen is None
    assert "19 subsets are too few to choose on one half" in few.notes[0]
    turned = evaluate({"true": -TRUE}, MASKS, OUTPUTS, resamples=50)
    assert "foretells the opposite of what happened" in turned.notes[0]
    assert evaluate({"true": TRUE}, MASKS, OUTPUTS, halve=False, resamples=5).chosen is None


def changed(array: Any, place: tuple[int, ...], value: float) -> Float64:
    found: Float64 = array.astype(np.float64)
    found[place] = value
    return found


@pytest.mark.parametrize(("scores", "masks", "outputs", "message"), [
    (TRUE, changed(MASKS, (2, 3), 0.5), OUTPUTS, r"masks are not boolean: subset 2 has 0\.5 at row 3"),
    (TRUE, changed(MASKS, (2, 3), np.nan), OUTPUTS, "masks are not boolean: subset 2 has nan"),
    (TRUE, MASKS[0], OUTPUTS, r"masks must be bool\[subsets, rows\], not of shape \[40\]"),
    (TRUE, MASKS[:9], OUTPUTS[:9], "9 subsets are too few for an interval; train on at least 10"),
    (TRUE, np.ones((12, ROWS)), OUTPUTS[:12], "all subsets are the same"),
    (TRUE, MASKS, OUTPUTS[:59], "masks have 60 subsets, outputs 59"),
    (TRUE, MASKS, OUTPUTS[0], r"outputs must be float\[subsets, queries\].*not float64\[5\]"),
    (TRUE, MASKS, OUTPUTS[:, :0], "outputs are of no queries"),
    (TRUE, MASKS, changed(OUTPUTS, (4, 2), np.nan), "outputs hold NaN or infinity, first at subset 4, query 2"),
    (TRUE, MASKS, changed(np.stack([OUTPUTS, OUTPUTS]), (1, 4, 2), np.inf), "first at model 1, subset 4, query 2"),
    (TRUE, MASKS, np.ones_like(OUTPUTS), "every model gave the same output for every query"),
    (TRUE[:, :9], MASKS, OUTPUTS, r"scores of 'one' have shape \[5, 9\]; masks have 40 rows and outputs 5 queries"),
    (TRUE.T, MASKS, OUTPUTS, r"they must be \[5, 40\]"),
    (changed(TRUE, (1, 2), np.nan), MASKS, OUTPUTS, "scores of 'one' hold NaN or infinity, first at query 1, row 2"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(scores: Any, masks: Any, outputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        evaluate({"one": scores}, masks, outputs, resamples=5)


def test_nothing_to_compare() -> None:
    with pytest.raises(InvalidInput, match="there are no scores to compare"):
        evaluate({}, MASKS, OUTPUTS)


# -- models of subsets -------------------------------------------------------------------------------------------------


def sums(rows: Any) -> Any:
    return TRUE[:, rows].sum(axis=1)


def test_subsets_are_drawn_by_number_alone() -> None:
    recipe = SubsetRecipe(row_count=ROWS, share=0.25, seed=1)
    masks = recipe.masks(12)
    assert masks.sum(axis=1).tolist() == [10] * 12
    np.testing.assert_array_equal(masks[:5], recipe.masks(5))
    assert all(np.flatnonzero(mask).tolist() == recipe.members(j).tolist() for j, mask in enumerate(masks))
    assert not np.array_equal(masks, SubsetRecipe(row_count=ROWS, share=0.25, seed=2).masks(12))
    assert len(np.unique(masks, axis=0)) == 12


def test_perfect_models_of_drawn_subsets_give_an_lds_of_one(tmp_path: Path) -> None:
    recipe = SubsetRecipe(row_count=ROWS)
    outputs = np.stack(list(trained_outputs(recipe, 20, sums, tmp_path)))
    found: Evaluation = evaluate({"true": TRUE}, recipe.masks(20), outputs, resamples=5)
    assert found.judged[0].lds.mean == pytest.approx(1)


def test_what_is_done_is_not_trained_again(tmp_path: Path) -> None:
    recipe = SubsetRecipe(row_count=ROWS)
    trained: list[Any] = []
    room = 7

    def train(rows: Any) -> Any:
        if len(trained) == room:
            raise MemoryError
        trained.append(rows)
        return sums(rows)

    with pytest.raises(MemoryError):
        list(trained_outputs(recipe, 12, train, tmp_path))
    assert len(list(tmp_path.glob("subset-*.npy"))) == 7
    room = 99
    outputs = list(trained_outputs(recipe, 12, train, tmp_path))
    assert [rows.tolist() for rows in trained] == [recipe.members(number).tolist() for number in range(12)]
    np.testing.assert_array_equal(outputs, [sums(recipe.members(number)) for number in range(12)])
    assert len(list(trained_outputs(recipe, 14, sums, tmp_path))) == 14


@pytest.mark.parametrize(("returned", "message"), [
    ([1.0, np.nan], "subset 0: the train function returned nan for query 1"),
    ([[1.0]], r"must return float\[queries\], not an array of shape \[1, 1\]"),
    ([], r"of shape \[0\]"),
    (None, "subset 0: the train function returned nothing"),
    (0.5, r"of shape \[\]"),
    (["a"], "returned no numbers"),
])  # fmt: skip
def test_outputs_that_are_none_are_refused_and_not_kept(tmp_path: Path, returned: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(trained_outputs(SubsetRecipe(row_count=ROWS), 3, lambda rows: returned, tmp_path))
    assert list(tmp_path.glob("subset-*")) == []


def test_other_recipes_and_torn_files_are_refused(tmp_path: Path) -> None:
    list(trained_outputs(SubsetRecipe(row_count=ROWS, train="a:b"), 2, sums, tmp_path))
    for other in (
        SubsetRecipe(row_count=ROWS, train="a:b", seed=1),
        SubsetRecipe(row_count=ROWS + 1, train="a:b"),
        SubsetRecipe(row_count=ROWS, train="a:c"),
    ):
        with pytest.raises(Conflict, match=r"holds models of another recipe: (seed|row_count|train) is"):
            list(trained_outputs(other, 2, sums, tmp_path))
    with pytest.raises(InvalidInput, match="subset 2 has 1 outputs, those before 5"):
        list(trained_outputs(SubsetRecipe(row_count=ROWS, train="a:b"), 3, lambda rows: [1.0], tmp_path))
    torn = tmp_path / "subset-00001.npy"
    torn.write_bytes(torn.read_bytes()[:-3])
    with pytest.raises(Corrupt, match=r"subset-00001\.npy holds no outputs.*remove it"):
        list(trained_outputs(SubsetRecipe(row_count=ROWS, train="a:b"), 2, sums, tmp_path))
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(Corrupt, match="is no recipe of subsets"):
        list(trained_outputs(SubsetRecipe(row_count=ROWS), 2, sums, tmp_path))


@pytest.mark.parametrize("given", [{"share": 0.0}, {"share": 1.0}, {"share": 0.001}, {"row_count": 1}])
def test_recipes_that_leave_nothing_out_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"share|rows"):
        SubsetRecipe(**{"row_count": ROWS, **given})
