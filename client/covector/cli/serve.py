"""``covector serve``: hands over to the server, which is a package of its own."""

from __future__ import annotations

from covector.cli.options import become, require


def main(arguments: list[str]) -> int:
    """Replaces this process by the server; the arguments, ``--help`` included, are the server's."""
    require(["covector_server", "lmdb", "zarr"], "server", "covector serve")
    become("covector_server", arguments)
