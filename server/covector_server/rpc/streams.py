"""Blocking work behind an asynchronous stream: a generator runs in a pool, one step for each message that is wanted.

Nothing is computed ahead of the client, so a slow one holds neither a thread nor memory.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeAlias, TypeVar

import grpc

from covector_server.query.cancellation import Cancelled

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")

MESSAGE_BYTES: Final = 1 << 20  # of payload that a streamed message aims at


class _End:
    """What a step returns when there is nothing more."""


_END = _End()


async def pulled(pool: ThreadPoolExecutor, produce: Callable[[Cancelled], Iterator[T]]) -> AsyncIterator[T]:
    """What ``produce(cancelled)`` yields, each step run in the pool. When the call ends early (the task of its handler
    is cancelled), ``cancelled`` turns true and the generator is closed, in the pool, after the step under way."""
    stop = threading.Event()
    iterator = produce(stop.is_set)
    step: Future[T | _End] | None = None
    try:
        while True:
            step = pool.submit(next, iterator, _END)
            item = await asyncio.wrap_future(step)
            if isinstance(item, _End):
                return
            yield item
    finally:
        stop.set()
        if step is not None:
            step.add_done_callback(lambda _: _close(pool, iterator))


async def computed(pool: ThreadPoolExecutor, compute: Callable[[Cancelled], T]) -> T:
    """The result of one blocking call in the pool, which is told when nobody waits for it any more."""
    stop = threading.Event()
    try:
        return await asyncio.wrap_future(pool.submit(compute, stop.is_set))
    finally:
        stop.set()


def runs(sizes_bytes: Sequence[int], bytes_max: int = MESSAGE_BYTES) -> Iterator[slice]:
    """Consecutive items cut into runs of at most ``bytes_max``, or of one item that is larger."""
    start, total = 0, 0
    for place, size_bytes in enumerate(sizes_bytes):
        if place > start and total + size_bytes > bytes_max:
            yield slice(start, place)
            start, total = place, 0
        total += size_bytes
    if start < len(sizes_bytes):
        yield slice(start, len(sizes_bytes))


def _close(pool: ThreadPoolExecutor, iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is None:
        return
    try:
        pool.submit(close)
    except RuntimeError:  # the pool is shut down
        close()
