"""Answers: hits, and the scores of every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from covector.blocks import column_from_message, decode_key, keys_of
from covector.errors import Internal
from covector.messages import damage_from_message, metadata_from_json
from covector.types import Damage, GroupHits, Hit, Key, QueryHits, QueryResult, Stage
from covector.v1 import query_pb2, types_pb2

ScoreBlock = tuple[list[Key], npt.NDArray[np.float32]]


@dataclass(slots=True)
class _Ends:
    """The two ends of a result, or of a group of its rows, while its messages come in."""

    proponents: list[Hit] = field(default_factory=list)
    opponents: list[Hit] = field(default_factory=list)

    def add(self, message: query_pb2.ResultHits | query_pb2.GroupHits) -> None:
        self.proponents += map(_hit, message.proponents)
        self.opponents += map(_hit, message.opponents)


@dataclass(slots=True)
class _Group:
    """A group while its messages come in, one behind the other; ``message`` is the first."""

    message: query_pb2.GroupHits
    ends: _Ends = field(default_factory=_Ends)

    def is_of(self, message: query_pb2.GroupHits) -> bool:
        return (self.message.result_index, self.message.value_json) == (message.result_index, message.value_json)

    def hits(self) -> GroupHits:
        value_json = self.message.value_json
        return GroupHits(
            json.loads(value_json) if value_json else None,
            self.message.row_count,
            self.message.score_sum,
            tuple(self.ends.proponents),
            tuple(self.ends.opponents),
        )


def read_result(responses: Iterator[query_pb2.QueryResponse]) -> QueryResult:
    """The result in a stream of answers. Raises Internal if the stream is not as the .proto says."""
    first = next(responses, None)
    if first is None or first.WhichOneof("message") != "summary":
        raise Internal("the answer to a query did not begin with its summary")
    summary = first.summary
    ends = [_Ends() for _ in range(summary.result_count)]
    groups: list[list[_Group]] = [[] for _ in ends]
    for response in responses:
        message = response.group if response.WhichOneof("message") == "group" else response.hits
        index = message.result_index
        if index >= len(ends):
            raise Internal(f"hits of result {index} came, there are {len(ends)} results")
        if isinstance(message, query_pb2.ResultHits):
            ends[index].add(message)
            continue
        if not groups[index] or not groups[index][-1].is_of(message):
            groups[index].append(_Group(message))
        groups[index][-1].ends.add(message)
    hits = (
        QueryHits(tuple(end.proponents), tuple(end.opponents), tuple(group.hits() for group in found))
        for end, found in zip(ends, groups, strict=True)
    )
    return _result(summary, tuple(hits))


def read_whole(response: query_pb2.QueryOnceResponse) -> QueryResult:
    """The result in an answer of one message. Raises Internal if it is not as the .proto says."""
    summary = response.summary
    ends = [_Ends() for _ in range(summary.result_count)]
    for message in response.hits:
        if message.result_index >= len(ends):
            raise Internal(f"hits of result {message.result_index} came, there are {len(ends)} results")
        ends[message.result_index].add(message)
    return _result(summary, tuple(QueryHits(tuple(end.proponents), tuple(end.opponents)) for end in ends))


def _result(summary: query_pb2.QuerySummary, hits: tuple[QueryHits, ...]) -> QueryResult:
    return QueryResult(
        hits=hits,
        exact=summary.exact,
        stages=tuple(Stage(s.name, s.rows_in, s.rows_out, s.seconds) for s in summary.stages),
        scorer=summary.scorer,
        index=summary.index or None,
        fit=summary.fit or None,
        damping=summary.damping if summary.fit else None,
        damping_unit=summary.damping_unit,
        damages=tuple(map(damage_from_message, summary.damages)),
        reason=summary.reason,
    )


class Scores:
    """The scores of every row, read from the server while they are iterated.

    Iterates (keys, float32[m, n]) blocks: m results, n consecutive rows, all rows in the order in which the server
    numbered them. Each iteration asks anew; memory holds one block at a time. Errors of the query are raised by the
    iteration. By the sign convention, a score above zero marks a proponent.

    ``damages``: what the last iteration left out so far under ``damaged="omit"``. ``fit``, ``damping`` and
    ``damping_unit``: of the fit that it used, as in ``QueryResult``.
    """

    def __init__(self, ask: Callable[[], Iterator[query_pb2.ScoresResponse]], result_count: int) -> None:
        self._ask = ask
        self._result_count = result_count
        self._damages: list[Damage] = []
        self._fit: tuple[str | None, float | None, str] = (None, None, "")

    @property
    def fit(self) -> str | None:
        """The id of the fit that the last iteration used, None without one and before its first block."""
        return self._fit[0]

    @property
    def damping(self) -> float | None:
        """The damping of that fit, in units of ``damping_unit``."""
        return self._fit[1]

    @property
    def damping_unit(self) -> str:
        """What ``damping`` is a multiple of."""
        return self._fit[2]

    @property
    def damages(self) -> tuple[Damage, ...]:
        """What the last iteration left out so far; complete when it has ended."""
        return tuple(self._damages)

    def __iter__(self) -> Iterator[ScoreBlock]:
        found: list[Damage] = []
        self._damages = found
        for response in self._ask():
            found += map(damage_from_message, response.damages)
            if response.fit:
                self._fit = (response.fit, response.damping, response.damping_unit)
            if response.result_count or not response.damages:  # a message may bring damages and no rows
                yield self._block(response)

    def to_numpy(self) -> ScoreBlock:
        """All of them: (keys, float32[m, rows])."""
        keys: list[Key] = []
        parts: list[npt.NDArray[np.float32]] = [np.empty((self._result_count, 0), dtype=np.float32)]
        for block_keys, scores in self:
            keys += block_keys
            parts.append(scores)
        return keys, np.concatenate(parts, axis=1)

    def _block(self, response: query_pb2.ScoresResponse) -> ScoreBlock:
        row_count = len(response.scores) // (4 * self._result_count)
        if response.result_count != self._result_count or len(response.scores) != 4 * self._result_count * row_count:
            raise Internal(
                f"{len(response.scores)} bytes of scores came for {response.result_count} results; "
                f"{self._result_count} were asked for"
            )
        keys = keys_of(column_from_message(_values(response), row_count, "keys"))
        scores = np.frombuffer(response.scores, "<f4").reshape(self._result_count, row_count)
        return keys, scores.astype(np.float32)


def _values(response: query_pb2.ScoresResponse) -> types_pb2.BinaryColumn:
    return response.keys.values


def _hit(hit: query_pb2.Hit) -> Hit:
    text = hit.text if hit.HasField("text") else None
    return Hit(decode_key(hit.key), hit.score, text, metadata_from_json(hit.metadata_json))
