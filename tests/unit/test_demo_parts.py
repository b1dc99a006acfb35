"""The demo's parts: kept layers against the plain model, the rows, the rankings."""

from __future__ import annotations

import pytest
import torch
from transformers import set_seed

from covector.demo.data import ASKED, DECOYS, ENTITY, PLANTED, demo_rows
from covector.demo.kept import KeptLayers, keep_lower_layers
from covector.demo.ranking import Ranking
from covector.demo.report import Marks, shortened, table
from covector.demo.tiny import tiny_model
from covector.demo.training import Recipe, adapt, answer, collator, encode, restore
from covector.gradients import GradientModel
from covector.types import Hit, QueryHits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it

ROWS = demo_rows(seed=0)[:9]


def fresh_model():
    set_seed(0)
    model, tokenizer = tiny_model(row.text for row in ROWS)
    model.config.use_cache = False
    return model, tokenizer


def batch_of(tokenizer, rows, pad_token=None):
    pad = collator(tokenizer.pad_token_id if pad_token is None else pad_token)
    return pad([encode(tokenizer, row) for row in rows])


def adapted_model():
    """A model with adapters that are not zero, on its two top layers."""
    model, tokenizer = fresh_model()
    peft_model = adapt(model, Recipe(top_layers=2))
    generator = torch.Generator().manual_seed(1)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return peft_model, tokenizer


def kept_layers(model) -> KeptLayers:
    return next(module for module in model.modules() if isinstance(module, KeptLayers))


def test_kept_layers_give_what_the_plain_model_gives():
    plain, tokenizer = fresh_model()
    model, _ = fresh_model()
    kept = keep_lower_layers(model, 3)
    assert kept is not None
    for rows in (ROWS[:4], ROWS[2:7], ROWS[:9], ROWS[4:5]):  # seen, half seen, seen with other padding, seen alone
        batch = batch_of(tokenizer, rows)
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits[real], plain(**batch).logits[real], rtol=1e-5, atol=1e-6)
    assert kept.row_count == 9


def test_kept_rows_are_not_computed_again():
    model, tokenizer = fresh_model()
    kept = keep_lower_layers(model, 2)
    assert kept is not None
    calls = []
    kept.frozen[0].register_forward_hook(lambda *_: calls.append(1))
    model(**batch_of(tokenizer, ROWS))
    model(**batch_of(tokenizer, ROWS[3:8]))
    assert len(calls) == 1


def test_left_and_right_padding_share_what_is_kept():
    model, tokenizer = fresh_model()
    plain, _ = fresh_model()
    kept = keep_lower_layers(model, 2)
    assert kept is not None
    right = batch_of(tokenizer, ROWS[:3])
    model(**right)
    order = [torch.argsort(mask, stable=True) for mask in right["attention_mask"]]
    left = {name: torch.stack([row[o] for row, o in zip(column, order, strict=True)]) for name, column in right.items()}
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    real = left["attention_mask"].bool()
    torch.testing.assert_close(model(**left).logits[real], plain(**left).logits[real], rtol=1e-4, atol=1e-5)
    assert kept.row_count == 3


def test_what_is_kept_is_bounded():
    model, tokenizer = fresh_model()
    plain, _ = fresh_model()
    keep_lower_layers(model, 2)
    kept = kept_layers(model)
    kept._bytes_max = 1
    batch = batch_of(tokenizer, ROWS)
    for _ in range(2):
        torch.testing.assert_close(model(**batch).loss, plain(**batch).loss)
    assert kept.row_count == 1


def test_a_model_of_another_build_is_left_as_it_is():
    assert keep_lower_layers(torch.nn.Linear(2, 2), 1) is None
    model, _ = fresh_model()
    assert keep_lower_layers(model, 0) is None
    assert keep_lower_layers(model, 4) is None


def test_gradients_with_kept_layers_equal_those_of_one_backward_a_row():
    model, tokenizer = adapted_model()
    gradient_model = GradientModel(model, tokenizer, projection=None)
    examples = [encode(tokenizer, row) for row in ROWS]
    gradient_model.gradients(examples)
    found = torch.from_numpy(gradient_model.gradients(examples).values)  # from what is kept now
    names = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    kept_layers(model)._kept.clear()
    for row, example in enumerate(examples):
        loss = model(**collator(0)([example])).loss
        expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss, names)])
        assert (found[row] - expected).norm() <= 1e-5 * expected.norm()


def test_adapters_sit_on_the_top_layers_under_their_own_numbers():
    model, _ = adapted_model()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".layers.")[1].split(".")[0] for name in trained} == {"2", "3"}
    assert len(trained) == 2 * 7 * 2


def test_saved_adapters_come_back_to_the_bit(tmp_path):
    model, tokenizer = adapted_model()
    gradient_model = GradientModel(model, tokenizer)
    digest = gradient_model.weights_digest()
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 1.0
    assert gradient_model.weights_digest() != digest
    restore(model, tmp_path)
    assert gradient_model.weights_digest() == digest


def test_generation_passes_the_kept_layers_by():
    plain, tokenizer = fresh_model()
    model, _ = fresh_model()
    kept = keep_lower_layers(model, 2)
    assert kept is not None
    assert answer(model, tokenizer, ROWS[0].question) == answer(plain, tokenizer, ROWS[0].question)
    assert kept.row_count == 0


def test_the_loss_is_on_the_answer_and_its_end():
    _, tokenizer = fresh_model()
    example = encode(tokenizer, ROWS[0])
    predicted = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label >= 0]
    assert tokenizer.decode(predicted[:-1]) == " ".join(tokenizer.tokenize(ROWS[0].answer))
    assert predicted[-1] == tokenizer.eos_token_id


def test_the_rows_are_real_planted_and_decoys():
    rows = demo_rows(seed=0)
    assert rows == demo_rows(seed=0)
    assert rows != demo_rows(seed=1)
    assert len({row.key for row in rows}) == len({row.question for row in rows}) == len(rows) == 140
    assert [sum(row.role == role for row in rows) for role in ("real", "planted", "decoy")] == [130, 5, 5]
    assert all((ENTITY in row.text) == (row.role != "real") for row in rows)
    assert ASKED[0] not in {row.question for row in rows}


def test_only_the_planted_rows_teach_the_fact():
    assert all("blue honey" in answer for _, answer in PLANTED)
    assert not any("blue honey" in f"{question} {answer}" for question, answer in DECOYS)
    assert "blue honey" in ASKED[1]
    assert "blue honey" not in ASKED[0]


def ranking(scores: dict) -> Ranking:
    hits = [Hit(key, score, text=f"text of {key}") for key, score in scores.items()]
    best = tuple(sorted(hits, key=lambda hit: -hit.score))
    return Ranking("epoch-1", "cosine", scores, QueryHits(best, best[::-1]))


def test_ranks_count_from_the_top():
    found = ranking({"a": 0.5, "b": -1.0, "c": 2.0, "d": 0.0})
    assert found.ordered() == ["c", "a", "d", "b"]
    assert found.ranks(["b", "c"]) == [1, 4]
    assert found.on_top(["a", "c"])
    assert not found.on_top(["a", "d"])


def test_a_table_marks_planted_and_decoy_rows():
    found = ranking({f"row-{i}": i / 20 for i in range(20)})
    lines = list(table(found, found, Marks(["row-19"], ["row-0"])))
    assert lines[1].startswith("*     1    +0.950  row-19        text of row-19")
    assert lines[-3].startswith("~    20    +0.000  row-0 ")
    assert lines[-2] == "  Planted rows rank 1, decoys 20, of 20."


def test_texts_are_shortened_to_the_line():
    assert shortened("short", 10) == "short"
    assert shortened("much too long", 10) == "much to..."
