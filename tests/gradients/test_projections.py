"""Sketches judged by numpy: every number of the hash, and every projection done densely."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.gradients.conftest import EXAMPLES, make_gpt2, make_llama
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from covector.errors import InvalidInput
from covector.gradients import CountSketch, GradientModel, Kronecker
from covector.gradients import sketch as sketch_module
from covector.gradients.hashing import draws, draws_below, key_of, signs
from covector.types import Space

CPU = torch.device("cpu")


def numpy_draws(seed: int, label: str, elements: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The generator as its module describes it, in unsigned numbers."""
    key = np.frombuffer(hashlib.sha256(f"covector/1/{seed}/{label}".encode()).digest()[:8], "<u8")[0]
    with np.errstate(over="ignore"):
        z = key + (elements + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: npt.NDArray[np.uint64] = (z ^ (z >> np.uint64(31))) >> np.uint64(1)
    return found


def numpy_sketch(seed: int, name: str, gradients: npt.NDArray[Any], dim: int) -> npt.NDArray[np.float64]:
    """float64[rows, dim]: a count-sketch of float[rows, elements], bucket by bucket."""
    slots = numpy_draws(seed, name, np.arange(gradients.shape[1], dtype=np.uint64)) % np.uint64(2 * dim)
    found = np.zeros((len(gradients), dim))
    sign = np.where(slots % 2 == 0, 1.0, -1.0)
    for row, values in enumerate(gradients.astype(np.float64)):
        np.add.at(found[row], (slots // 2).astype(np.int64), sign * values)
    return found


def numpy_signs(seed: int, label: str, count: int) -> npt.NDArray[np.float64]:
    return np.where(numpy_draws(seed, label, np.arange(count, dtype=np.uint64)) % 2 == 0, 1.0, -1.0)


def whole_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **options: Any) -> dict[str, npt.NDArray[Any]]:
    """float32[rows, *shape] gradients by parameter name."""
    gradient_model = GradientModel(model, tokenizer, projection=None, **options)
    found = gradient_model.gradients(EXAMPLES).values
    shapes = {parameter.name: parameter.shape for parameter in gradient_model.space.parameters}
    return {b.name: found[:, b.start : b.stop].reshape(-1, *shapes[b.name]) for b in gradient_model.space.blocks}


def assert_near(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("seed", [0, 1, -7, 2**70])
@pytest.mark.parametrize("bound", [1, 2, 3, 8192, 10_007, 2**31])
def test_hash_equals_its_numpy_twin(seed: int, bound: int) -> None:
    elements = np.concatenate([np.arange(1000), 2**40 + np.arange(1000)])
    expected = numpy_draws(seed, "w", elements.astype(np.uint64))
    found = torch.from_numpy(elements)
    assert np.array_equal(draws(key_of(seed, "w"), found).numpy(), expected.astype(np.int64))
    assert np.array_equal(draws_below(bound, key_of(seed, "w"), found).numpy(), expected % np.uint64(bound))
    assert np.array_equal(signs(key_of(seed, "w"), 1000, CPU).numpy(), numpy_signs(seed, "w", 1000))


def test_hash_never_changes() -> None:
    """Stored sketches depend on these numbers: a change of any is another GENERATOR_VERSION."""
    name = "model.layers.0.self_attn.q_proj.weight"
    assert key_of(0, name) == GOLDEN["key"]
    assert draws(key_of(0, name), torch.arange(4)).tolist() == GOLDEN["draws"]
    assert draws_below(2 * 4096, key_of(7, name), torch.tensor([0, 1, 2, 10**6, 2**40])).tolist() == GOLDEN["slots"]


GOLDEN: dict[str, Any] = {
    "key": -3103969966981407977,
    "draws": [9216425064203381294, 2683140781525136761, 655347015987323133, 2325495414610802471],
    "slots": [2502, 3420, 8065, 2512, 8073],
}


def test_buckets_and_signs_are_even() -> None:
    for dim in (64, 100):
        slots = draws_below(2 * dim, key_of(3, "even"), torch.arange(200_000))
        counts = torch.bincount(slots, minlength=2 * dim).double()
        mean = 200_000 / (2 * dim)
        chi_square = float(((counts - mean) ** 2 / mean).sum())
        assert abs(chi_square - 2 * dim) < 5 * (4 * dim) ** 0.5


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("dim", [1, 100, 4096, 50_001])
def test_count_sketch_of_everything(tokenizer: PreTrainedTokenizerFast, make: Any, dim: int) -> None:
    model = make()
    gradient_model = GradientModel(model, tokenizer, projection=CountSketch(dim=dim, seed=5))
    parts = whole_of(model, tokenizer)
    expected = sum(numpy_sketch(5, name, part.reshape(len(part), -1), dim) for name, part in parts.items())
    found = gradient_model.gradients(EXAMPLES).values
    if dim == 1:  # all of it cancels in one bucket: an error of float32 is measured by what was added
        assert np.abs(found - expected).max() < 1e-4 * max(np.abs(part).sum() for part in parts.values())
    else:
        assert_near(found, np.asarray(expected))
    assert gradient_model.space.blocks == ()


def test_count_sketch_by_layer(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    gradient_model = GradientModel(model, tokenizer, projection=CountSketch(1003, seed=5, blocks="layer"))
    parts = whole_of(model, tokenizer)
    expected = [
        numpy_sketch(5, block.name, parts[block.name].reshape(len(EXAMPLES), -1), block.stop - block.start)
        for block in gradient_model.space.blocks
    ]
    assert_near(gradient_model.gradients(EXAMPLES).values, np.concatenate(expected, axis=1))
    blocks = gradient_model.space.blocks
    assert [block.name for block in blocks] == list(parts)
    assert [block.size for block in blocks] == [part[0].size for part in parts.values()]
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert {block.stop - block.start for block in blocks} == {50, 51}


def test_chunks_and_tables_that_are_not_kept_change_nothing(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_llama()
    expected = GradientModel(model, tokenizer).gradients(EXAMPLES).values
    monkeypatch.setattr(sketch_module, "CHUNK_ELEMENTS_MAX", 100)
    monkeypatch.setattr(sketch_module, "TABLE_BYTES_MAX", 5000)
    gradient_model = GradientModel(model, tokenizer)
    assert_near(gradient_model.gradients(EXAMPLES).values, expected)
    assert_near(gradient_model.gradients(EXAMPLES[::-1]).values[::-1], expected)


def test_cosines_survive_within_one_over_root_dim(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    whole = np.concatenate([part.reshape(len(part), -1) for part in whole_of(model, tokenizer).values()], axis=1)
    sketched = GradientModel(model, tokenizer, projection=CountSketch(dim=2048)).gradients(EXAMPLES).values

    def cosines(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(unit @ unit.T)

    error = (cosines(whole) - cosines(sketched))[np.triu_indices(len(EXAMPLES), 1)]
    assert np.sqrt((error**2).mean()) < 2 / 2048**0.5


def dense_kronecker(name: str, part: npt.NDArray[Any], projection: Kronecker, *, transposed: bool) -> npt.NDArray[Any]:
    """float64[rows, k]: one parameter's gradient, projected from both sides with whole matrices."""
    bound = projection.dim_in * projection.dim_out
    if part.ndim == 2:
        return part if part.shape[1] <= bound else numpy_sketch(projection.seed, name, part, bound)
    part = part.transpose(0, 2, 1) if transposed else part

    def side(label: str, size: int, k: int) -> npt.NDArray[Any]:
        if size <= k:
            return np.eye(size)
        return np.asarray(numpy_signs(projection.seed, f"{name}/{label}", size * k).reshape(size, k).T / k**0.5)

    left = side("out", part.shape[1], projection.dim_out)
    right = side("in", part.shape[2], projection.dim_in)
    found = left @ part.astype(np.float64) @ right.T
    return np.asarray((found.transpose(0, 2, 1) if transposed else found).reshape(len(part), -1))


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_kronecker_equals_dense_matrices(tokenizer: PreTrainedTokenizerFast, make: Any) -> None:
    model = make()
    projection = Kronecker(dim_in=5, dim_out=3, seed=9)
    gradient_model = GradientModel(model, tokenizer, projection=projection)
    conv = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Conv1D"}
    parts = whole_of(model, tokenizer)
    expected = [dense_kronecker(name, part, projection, transposed=name in conv) for name, part in parts.items()]
    assert_near(gradient_model.gradients(EXAMPLES).values, np.concatenate(expected, axis=1))
    sizes = [block.stop - block.start for block in gradient_model.space.blocks]
    assert sizes == [part.shape[1] for part in expected]


def test_kronecker_keeps_axes_that_are_short(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    found = GradientModel(model, tokenizer, projection=Kronecker(dim_in=1000, dim_out=1000)).gradients(EXAMPLES)
    whole = GradientModel(model, tokenizer, projection=None).gradients(EXAMPLES)
    assert_near(found.values, whole.values)


def test_spaces_tell_projections_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    projections = [
        None, CountSketch(512), CountSketch(512, seed=1), CountSketch(512, blocks="layer"), CountSketch(513),
        Kronecker(dim_in=4, dim_out=6), Kronecker(dim_in=6, dim_out=4), Kronecker(dim_in=6, dim_out=4, seed=1),
    ]  # fmt: skip
    spaces = [GradientModel(model, tokenizer, projection=projection).space for projection in projections]
    assert len({space.fingerprint for space in spaces}) == len(projections)
    for space in spaces:
        assert Space.from_json(space.json) == space


@pytest.mark.parametrize(
    ("projection", "options", "message"),
    [
        (CountSketch, {"dim": 0}, "dim must be an integer from 1"),
        (CountSketch, {"dim": 4096.0}, "dim must be an integer from 1"),
        (CountSketch, {"seed": "a"}, "seed must be an integer"),
        (CountSketch, {"blocks": "both"}, "blocks must be 'single' or 'layer'"),
        (Kronecker, {"dim_in": 0, "dim_out": 4}, "dim_in must be an integer of at least 1"),
    ],
)
def test_wrong_projections(projection: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        projection(**options)


def test_fewer_coordinates_than_layers(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidInput, match="cannot be divided among 20 parameters"):
        GradientModel(make_llama(), tokenizer, projection=CountSketch(19, blocks="layer"))
