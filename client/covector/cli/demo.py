"""``covector demo``: the options and the work are in ``covector.demo``."""

from __future__ import annotations

from covector.cli.options import command_parser, require
from covector.errors import InvalidInput


def main(arguments: list[str]) -> int:
    """Runs the demo; status 1 if its ranking is not as expected."""
    from covector import demo

    parser = command_parser(
        "demo",
        "Fine-tune a small language model on real rows with a planted fact, store its gradients, and ask which rows "
        "taught it the fact.",
        "covector demo --out ./covector-demo",
    )
    demo.arguments(parser)
    given = parser.parse_args(arguments)
    require(["torch", "transformers", "peft", "lmdb", "zarr"], "torch,server,demo", "covector demo")
    try:
        return demo.run(given)
    except ImportError as error:
        raise InvalidInput(str(error)) from error
