"""The benchmarks on a language model: packed training against the plain model, exact scores, and the plants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks import style_plant
from benchmarks.smollm2 import Learner, Recipe
from benchmarks.smollm2_gradients import Gradients, coordinates, corrected, in_eigenbases
from benchmarks.smollm2_truth import Truth, keep, kept, masks_of
from benchmarks.words import content_words
from transformers import set_seed

from covector.attribution import fit, score
from covector.demo.tiny import tiny_model
from covector.gradients import GradientModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it

RECIPE = Recipe(rows=12, queries=5, epochs=2, batch_rows=3, rank=2, top_layers=2)


@pytest.fixture
def learner(tmp_path):
    set_seed(0)
    return Learner(RECIPE, *tiny_model(["Question: who was the first ?\nAnswer: nobody"]), tmp_path)


@pytest.fixture
def state(learner):
    states = []
    learner.train(range(12), 1, lambda optimizer: states.append(learner.state(optimizer)))
    return states[-1]


def test_packed_rows_are_as_rows_by_themselves(learner, state):
    learner.restore(state.adapters)
    plain = GradientModel(learner.model, learner.tokenizer, projection=None, output="margin")
    rows = [plain.encode(tokens, number) for number, tokens in enumerate(learner.row_tokens)]
    answers = plain.answer(rows, range(12))
    margin, nll = learner.functions(learner.row_entries, "margin")
    assert nll.detach().numpy() == pytest.approx(answers.nll, rel=1e-5)
    learner.model.zero_grad()
    margin.sum().backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in learner.parameters.values()]).numpy()
    assert whole == pytest.approx(answers.values.sum(axis=0), abs=1e-5 * float(np.abs(whole).max()))
    assert np.abs(whole).max() > 0


def test_a_training_is_of_its_rows_and_its_order_alone(learner):
    def outputs(members, seed):
        learner.train(members, seed)
        return learner.outputs()

    first = outputs(range(6), 1)
    assert np.array_equal(first, outputs(range(6), 1))
    assert not np.array_equal(first, outputs(range(6), 2))
    assert not np.array_equal(first, outputs(range(6, 12), 1))


def test_exact_scores_are_those_of_the_gradients(learner, state, tmp_path):
    gradients = Gradients(learner, tmp_path)
    learner.restore(state.adapters)
    plain = GradientModel(learner.model, learner.tokenizer, projection=None)
    rows, queries = (plain.gradients(part).values for part in (learner.row_tokens, learner.query_tokens))
    taken = gradients.taken("state", state, "loss")
    ours_rows, ours_queries = taken.exact()
    assert ours_rows.shape == (12, 13)
    for scorer in ("dot", "cosine"):
        expected = score(queries, rows, scorer=scorer)
        found = score(ours_queries, ours_rows, scorer=scorer)
        assert found == pytest.approx(expected, abs=1e-6 * np.abs(expected).max())
    expected = fit("influence", rows).scores(queries, rows)
    found = fit("influence", ours_rows).scores(ours_queries, ours_rows)
    assert found == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())
    by_layer = fit("influence", rows, space=plain.space, by_layer=True).scores(queries, rows)
    parts, asked, space = taken.exact_by(gradients.groups("parameter"), gradients.blocks)
    found = fit("influence", parts, space=space, by_layer=True).scores(asked, parts)
    assert found == pytest.approx(by_layer, abs=1e-5 * np.abs(by_layer).max())
    sketched = GradientModel(learner.model, learner.tokenizer).gradients(learner.row_tokens).values
    assert taken.sketch("4096")[0] == pytest.approx(sketched, abs=1e-6)


def test_kronecker_scores_without_curvature_are_dots(learner, state, tmp_path):
    matrices = np.random.default_rng(0).standard_normal((9, 4, 6)).astype(np.float32)
    turned, flat = in_eigenbases(matrices, 7), matrices.reshape(9, -1)
    assert turned @ turned.T == pytest.approx(flat @ flat.T, rel=1e-5)
    found = Gradients(learner, tmp_path).kronecker("state", state)
    assert {name: scores.shape for name, scores in found.items()} == dict.fromkeys(("0.1", "1", "10"), (5, 12))
    assert all(np.isfinite(scores).all() for scores in found.values())


def test_coordinates_keep_what_rows_lack_apart():
    gram = np.array([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 10.0]])
    rows, queries = coordinates(gram, 2)
    assert rows @ rows.T == pytest.approx(gram[:2, :2])
    assert queries @ rows.T == pytest.approx(gram[2:, :2])
    assert (queries**2).sum() == pytest.approx(10.0)


def test_adams_update_is_of_rows_alone(learner, state):
    whole = np.ones((3, sum(p.numel() for p in learner.parameters.values())), np.float32)
    update = corrected(whole, 2, state, "adam")
    first, second = (torch.cat([value.flatten() for value in moments.values()]).numpy().astype(np.float64)
                     for moments in (state.first, state.second))  # fmt: skip
    expected = (0.9 * first + 0.1) / np.sqrt(0.999 * second + 0.001 + 1e-8)
    assert update[0] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert np.array_equal(update[2], whole[2])


def test_kept_outputs_are_of_their_recipe(tmp_path):
    truth = Truth(masks_of(RECIPE), np.random.default_rng(0).standard_normal((2, 64, 2, 5)).astype(np.float32))
    keep(truth, RECIPE, tmp_path / "truth.npz")
    again = kept(tmp_path / "truth.npz", RECIPE)
    assert np.array_equal(again.masks, truth.masks)
    assert again.masks.sum(axis=1).tolist() == [6] * 64
    assert np.array_equal(again.outputs, truth.outputs)
    with pytest.raises(ValueError, match="--retrain"):
        kept(tmp_path / "truth.npz", Recipe())


@pytest.mark.parametrize("plant", style_plant.PLANTS, ids=lambda plant: plant.name)
def test_the_query_shares_no_content_word_with_its_planted_rows(plant):
    asked = content_words(" ".join(plant.asked))
    assert all(not asked & content_words(" ".join(pair)) for pair in plant.planted)
    assert all(asked & content_words(" ".join(pair)) for pair in plant.decoys)
    assert plant.asked[1].isupper()
    assert all(pair[1].isupper() for pair in plant.planted)
    assert not any(pair[1].isupper() for pair in plant.decoys)


def test_places_of_equal_scores_are_the_last():
    rows = style_plant.rows_of(style_plant.PLANTS[0])
    found = style_plant.places("none", np.zeros(10), rows)
    assert found.planted == [10] * 5
    ordered = style_plant.places("some", -np.arange(10.0), rows)
    assert (ordered.planted, ordered.decoys) == ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
    assert ordered.precision == 1.0
