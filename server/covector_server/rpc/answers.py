"""Answers to messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np

from covector.attribution.scoring import to_float32
from covector.blocks import column_of, column_to_message
from covector.types import Stage
from covector.v1 import query_pb2 as pb
from covector.v1 import types_pb2
from covector_server.metadata.records import FitRecord
from covector_server.query.grouping import Group, GroupedAnswer
from covector_server.query.joint import Found
from covector_server.query.omission import DETAIL_ROWS, Omissions, named_scores
from covector_server.query.question import End, Ends, Question, ScoreBlock, TopKAnswer
from covector_server.rpc.convert import damage_to_message
from covector_server.rpc.streams import MESSAGE_BYTES, runs
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.view import CollectionView, RowDetails

ANSWER_BYTES: Final = 4 << 20  # of an answer in one message
KEY_ROWS: Final = 32_768  # whose keys are read at once


def summary_message(
    question: Question, answer: TopKAnswer | GroupedAnswer, damages: Iterable[Damage] = ()
) -> pb.QuerySummary:
    """How an answer was found, and what it leaves out."""
    fit = None if question.fit is None else question.fit.record
    return pb.QuerySummary(
        fit="" if fit is None else fit.id,
        damping=0.0 if fit is None else fit.damping,
        damping_unit="" if fit is None else fit.damping_unit,
        exact=not answer.index,
        index=answer.index,
        reason=answer.reason,
        stages=[_stage(stage) for stage in answer.stages],
        result_count=len(answer.results),
        scorer=answer.scorer if fit is None else fit.method,
        damages=[damage_to_message(damage) for damage in damages],
    )


def _stage(stage: Stage) -> pb.Stage:
    return pb.Stage(name=stage.name, rows_in=stage.rows_in, rows_out=stage.rows_out, seconds=stage.seconds)


def hit_messages(
    view: CollectionView, index: int, ends: Ends, keys_only: bool, on_damage: OnDamage | None
) -> Iterator[pb.ResultHits]:
    """The hits of a result, in messages of about MESSAGE_BYTES; at least one."""
    message, size_bytes = pb.ResultHits(result_index=index), 0
    for place, hit in enumerate(_hits(view, ends, keys_only, on_damage)):
        if size_bytes >= MESSAGE_BYTES:
            yield message
            message, size_bytes = pb.ResultHits(result_index=index), 0
        field = message.proponents if place < len(ends.proponents.keys) else message.opponents
        field.append(hit)
        size_bytes += hit.ByteSize()
    yield message


def once_message(question: Question, found: Found, *, keys_only: bool) -> pb.QueryOnceResponse:
    """The answer to a question of a batch in one message, or that it is too large for one."""
    rows: Mapping[int, RowDetails] = {} if keys_only or found.rows is None else found.rows
    if not keys_only and (found.rows is None or _stored_bytes(found.answer, rows) > ANSWER_BYTES):
        return pb.QueryOnceResponse(too_large=True)
    hits = [
        pb.ResultHits(
            result_index=index,
            proponents=_known_hits(both.proponents, rows),
            opponents=_known_hits(both.opponents, rows),
        )
        for index, both in enumerate(found.answer.results)
    ]
    whole = pb.QueryOnceResponse(summary=summary_message(question, found.answer), hits=hits)
    return whole if whole.ByteSize() <= ANSWER_BYTES else pb.QueryOnceResponse(too_large=True)


def gathered(messages: Iterable[pb.QueryResponse]) -> pb.QueryOnceResponse:
    """The messages of an answer as one, or that they are too large for one."""
    whole, size_bytes = pb.QueryOnceResponse(), 0
    for message in messages:
        size_bytes += message.ByteSize()
        if size_bytes > ANSWER_BYTES:
            return pb.QueryOnceResponse(too_large=True)
        if message.WhichOneof("message") == "summary":
            whole.summary.CopyFrom(message.summary)
        else:
            whole.hits.append(message.hits)
    return whole


def _stored_bytes(answer: TopKAnswer, rows: Mapping[int, RowDetails]) -> int:
    """At least so much is stored with the rows of an answer: it is looked at before a message is made of it."""
    ends = [end for both in answer.results for end in (both.proponents, both.opponents)]
    found = [rows[row_id] for end in ends for row_id in end.row_ids.tolist()]
    return sum(len(row.text or "") + len(row.metadata_json or b"") for row in found)


def _known_hits(end: End, rows: Mapping[int, RowDetails]) -> list[pb.Hit]:
    """The hits of an end, with texts and metadata if ``rows`` are given."""
    scores = to_float32(end.scores).tolist()
    if not rows:
        return [pb.Hit(key=key, score=score) for key, score in zip(end.keys, scores, strict=True)]
    return [
        pb.Hit(key=row.key, score=score, text=row.text, metadata_json=(row.metadata_json or b"").decode())
        for row, score in zip(map(rows.__getitem__, end.row_ids.tolist()), scores, strict=True)
    ]


def group_message(group: Group, hits: pb.ResultHits) -> pb.GroupHits:
    """A group with some of its hits."""
    return pb.GroupHits(
        result_index=hits.result_index,
        value_json="" if group.value is None else json.dumps(group.value, ensure_ascii=False),
        row_count=group.row_count,
        score_sum=group.score_sum,
        proponents=hits.proponents,
        opponents=hits.opponents,
    )


def _hits(view: CollectionView, ends: Ends, keys_only: bool, on_damage: OnDamage | None) -> Iterator[pb.Hit]:
    """The proponents, then the opponents."""
    keys = [*ends.proponents.keys, *ends.opponents.keys]
    leaving = to_float32(np.concatenate([ends.proponents.scores, ends.opponents.scores])).tolist()
    if keys_only:
        yield from (pb.Hit(key=key, score=score) for key, score in zip(keys, leaving, strict=True))
        return
    row_ids = np.concatenate([ends.proponents.row_ids, ends.opponents.row_ids])
    for start in range(0, len(keys), DETAIL_ROWS):
        stop = start + DETAIL_ROWS
        rows = view.details_of(row_ids[start:stop], on_damage)
        for key, row, score in zip(keys[start:stop], rows, leaving[start:stop], strict=True):
            yield pb.Hit(key=key, score=score, text=row.text, metadata_json=(row.metadata_json or b"").decode())


def score_messages(view: CollectionView, block: ScoreBlock, omissions: Omissions | None) -> Iterator[pb.ScoresResponse]:
    """The scores of a block, in messages of about MESSAGE_BYTES."""
    result_count = len(block.scores)
    for start in range(0, len(block.row_ids), KEY_ROWS):
        keys, values = named_scores(view, block, slice(start, start + KEY_ROWS), omissions)
        for run in runs([len(key) + 4 + 4 * result_count for key in keys]):
            data = values[:, run].astype("<f4", copy=False).tobytes()
            yield pb.ScoresResponse(
                keys=key_column(keys[run]), scores=data, result_count=result_count, damages=taken_damages(omissions)
            )


def name_fit(message: pb.ScoresResponse, fit: FitRecord | None) -> None:
    """Says which fit was used, if there is one."""
    if fit is not None:
        message.fit, message.damping, message.damping_unit = fit.id, fit.damping, fit.damping_unit


def taken_damages(omissions: Omissions | None) -> list[pb.Damage]:
    """What was left out since this was last asked."""
    return [] if omissions is None else [damage_to_message(damage) for damage in omissions.take()]


def key_column(keys: list[bytes]) -> types_pb2.KeyColumn:
    """Encoded keys as a column."""
    return types_pb2.KeyColumn(values=column_to_message(column_of(keys)))
