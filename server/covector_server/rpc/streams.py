"""Blocking work behind an asynchronous stream: a generator runs in a pool, a step when messages are wanted.

A step makes one message, or several while they are small and quick to make: to and fro between the loop and the pool
takes longer than most. Nothing more is computed ahead of the client, so a slow one holds neither a thread nor memory.
What was made while a page of a stored file could not be read is not sent: the call is Unavailable, and clients try
again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import grpc

from covector_server.kernels.pages import Losses
from covector_server.query.cancellation import Cancelled

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")

MESSAGE_BYTES: Final = 1 << 20  # of payload that a streamed message aims at


STEP_BYTES: Final = 64 << 10  # of messages that a step makes before it ends
STEP_S: Final = 0.002  # that a step takes before it ends


class _Sized(Protocol):
    def ByteSize(self) -> int: ...


Message = TypeVar("Message", bound=_Sized)


@dataclass(slots=True)
class _Step(Generic[Message]):
    """What a step made; ``is_last``: there is nothing more, but for the error, if there is one."""

    messages: list[Message]
    is_last: bool = False
    error: Exception | None = None


async def pulled(pool: ThreadPoolExecutor, produce: Callable[[Cancelled], Iterator[Message]]) -> AsyncIterator[Message]:
    """What ``produce(cancelled)`` yields, each step run in the pool. When the call ends early (the task of its handler
    is cancelled), ``cancelled`` turns true and the generator is closed, in the pool, after the step under way."""
    stop = threading.Event()
    iterator = produce(stop.is_set)
    step: Future[_Step[Message]] | None = None
    losses, is_over = Losses(), False
    try:
        while not is_over:
            step = pool.submit(_take, iterator, losses)
            made = await asyncio.wrap_future(step)
            is_over = made.is_last
            for message in made.messages:
                yield message
            if made.error is not None:
                raise made.error
    finally:
        stop.set()
        if step is not None and not is_over:
            step.add_done_callback(lambda _: _close(pool, iterator))


def _take(iterator: Iterator[Message], losses: Losses) -> _Step[Message]:
    """The next messages: one that is large or slow, or some that are neither. What goes wrong after the first is told
    behind it."""
    step: _Step[Message] = _Step([])
    started, size_bytes = time.monotonic(), 0
    try:
        for message in iterator:
            losses.check()
            step.messages.append(message)
            size_bytes += message.ByteSize()
            if size_bytes >= STEP_BYTES or time.monotonic() - started >= STEP_S:
                return step
        losses.check()
    except Exception as error:  # noqa: BLE001 - raised in its place by who asked
        step.error = error
    step.is_last = True
    return step


async def computed(pool: ThreadPoolExecutor, compute: Callable[[Cancelled], T]) -> T:
    """The result of one blocking call in the pool, which is told when nobody waits for it any more."""
    stop, losses = threading.Event(), Losses()
    try:
        result = await asyncio.wrap_future(pool.submit(compute, stop.is_set))
    finally:
        stop.set()
    losses.check()
    return result


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
