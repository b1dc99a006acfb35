"""Answers to requests that may be sent again: a request id, what was answered, and when.

A client sends a request again within minutes, so an answer is kept for days and then forgotten; the table has a bound.
"""

from __future__ import annotations

from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader, Writer, number, numbers


def answered(reader: Reader, request_id: str) -> int | None:
    """What was answered to a request, None if it is new (or has no id)."""
    stored = reader.get("requests", request_id.encode()) if request_id else None
    return None if stored is None else numbers(stored)[0]


def remember(writer: Writer, request_id: str, answer: int, now_s: int) -> None:
    """Keeps what is answered to a request, if it has an id."""
    if request_id:
        writer.put("requests", request_id.encode(), number(answer, now_s))


def forget_old(writer: Writer, now_s: int, limits: Limits) -> None:
    """Forgets answers older than ``request_age_s``, and the oldest of more than ``requests_kept``. Answers of format 1
    have no time: theirs begins now."""
    times: list[tuple[int, bytes]] = []
    for key, value in list(writer.scan("requests")):
        answer, *when = numbers(value)
        if not when:
            writer.put("requests", key, number(answer, now_s))
        times.append((when[0] if when else now_s, key))
    times.sort(reverse=True)
    for place, (when_s, key) in enumerate(times):
        if place >= limits.requests_kept or when_s < now_s - limits.request_age_s:
            writer.delete("requests", key)
