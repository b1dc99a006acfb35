"""A server that ends itself, as ``kill -9`` would, at a step of a protocol that ``storage.disk.Disk.step`` names.

``python -m covector_server.testing.killable --kill-at commit.synced:3 -- --data DIR --listen unix:/path`` serves as
``covector serve`` does, until the third time that the step ``commit.synced`` is reached. Chunks and shards may be far
smaller than the command line of the real server allows, so that every seal and roll happens within seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from covector_server import config as configuration
from covector_server.app import serve
from covector_server.storage.disk import Disk
from covector_server.storage.store import Sizes


class KillableDisk(Disk):
    """The real disk, with an end at the ``count``-th time of the step ``name``; "" is no step.

    seen: a file that the name of each step is added to when it is first reached, so that others learn what there is.
    """

    def __init__(self, name: str = "", count: int = 1, seen: Path | None = None) -> None:
        self._name = name
        self._left = count
        self._seen = seen
        self._known: set[str] = set()

    def step(self, name: str) -> None:
        if name not in self._known:
            self._known.add(name)
            if self._seen is not None:
                with self._seen.open("a", encoding="utf-8") as file:
                    file.write(name + "\n")
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # nothing more happens on this thread before the signal arrives


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM, SIGINT or the step; returns the exit status."""
    given = _parser().parse_args(arguments)
    if given.open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (given.open_files, given.open_files))
    told = configuration.parse(given.serve)
    sizes = Sizes(
        chunk_bytes=given.chunk_kib << 10,
        shard_bytes=given.shard_kib << 10,
        log_file_bytes=(given.row_file_kib << 10) or Sizes().log_file_bytes,
        recent_keys=given.recent_keys,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(serve(replace(told, sizes=sizes, stop_grace_s=given.stop_grace_s), _disk(given)))
    return 0


def _disk(given: argparse.Namespace) -> Disk:
    if given.disk:
        module, _, name = given.disk.partition(":")
        disk = getattr(importlib.import_module(module), name)()
        assert isinstance(disk, Disk)
        return disk
    name, _, count = given.kill_at.partition(":")
    return KillableDisk(name, int(count or 1), given.steps_seen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="killable", description="Serve until a named step, then die by SIGKILL.")
    parser.add_argument("--kill-at", default="", metavar="STEP:N", help="where to end: the N-th time of a step")
    parser.add_argument("--steps-seen", type=Path, metavar="FILE", help="where to write the names of the steps reached")
    parser.add_argument("--disk", default="", metavar="MODULE:CLASS", help="another disk, instead of --kill-at")
    parser.add_argument("--chunk-kib", type=int, default=4, metavar="KIB", help="size of new chunks (default 4)")
    parser.add_argument("--shard-kib", type=int, default=64, metavar="KIB", help="size of new shards (default 64)")
    parser.add_argument("--row-file-kib", type=int, default=0, metavar="KIB", help="size of a file of the row log")
    parser.add_argument("--recent-keys", type=int, default=500, metavar="N", help="keys before a run (default 500)")
    parser.add_argument("--open-files", type=int, default=0, metavar="N", help="a limit on open files")
    parser.add_argument("--stop-grace-s", type=float, default=1.0, metavar="S", help="how long streams may take to end")
    parser.add_argument("serve", nargs="+", help="after --, the arguments of covector serve")
    return parser


if __name__ == "__main__":
    sys.exit(main())
