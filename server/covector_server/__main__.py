"""``python -m covector_server``: what ``covector serve`` runs."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys

from covector.errors import CovectorError, InvalidInput
from covector_server.app import serve
from covector_server.config import parse


def main() -> int:
    """Serves; returns the exit status."""
    try:
        config = parse()
        _allow_many_files()
        logging.basicConfig(level=logging.INFO if config.verbose else logging.WARNING, stream=sys.stderr)
        asyncio.run(serve(config))
    except (CovectorError, OSError) as error:
        print(f"covector: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    return 0


def _allow_many_files() -> None:
    """A mapped shard holds a file: raises the soft limit on open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
