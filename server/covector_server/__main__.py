"""``python -m covector_server``: what ``covector serve`` runs."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import resource
import sys

from covector.errors import CovectorError, InvalidInput
from covector_server.app import serve
from covector_server.config import parse

_MALLOC = {-8: 2, -3: 32 << 20, -1: 128 << 20, -2: 16 << 20}  # M_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD


def main() -> int:
    """Serves; returns the exit status."""
    try:
        config = parse()
        _allow_many_files()
        keep_freed_memory()
        collect_rarely()
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


def keep_freed_memory() -> None:
    """Messages of a MiB come and go a thousand times a second: glibc is told to keep what they free, where it would
    give it back to the system and page it in again, which costs as much as receiving them. Two arenas bound what is
    kept."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not in every C library
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def collect_rarely() -> None:
    """A batch makes hundreds of objects, none of them in a cycle, and each of the collector's looks stops every thread:
    at Python's own threshold of 700 it took a twentieth of the time of ingest. What is loaded by now is for good and
    need not be looked at."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


if __name__ == "__main__":
    sys.exit(main())
