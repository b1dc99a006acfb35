"""Deletes, compaction, snapshots, status and damage: what the client sends, and how it reads the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.scripted_calls import Answers, described, scripted

import covector
from covector import rows as rows_module
from covector.blocks import column_from_message, key_column, keys_of
from covector.blocks import column_to_message as to_message
from covector.errors import Corrupt, InvalidInput
from covector.types import Damage
from covector.v1 import admin_pb2, collections_pb2, operations_pb2, query_pb2, rows_pb2

DAMAGE = query_pb2.Damage(checkpoint="e1", path="collections/1/gradients", message="chunk 3 is damaged", row_count=7)
READ = Damage("e1", "collections/1/gradients", "chunk 3 is damaged", 7)


def keys_in(request: rows_pb2.DeleteRowsRequest) -> list[Any]:
    values = request.keys.values
    return keys_of(column_from_message(values, len(values.ends) // 4, "keys"))


def test_many_keys_are_deleted_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_KEYS_MAX", 3)
    came: list[rows_pb2.DeleteRowsRequest] = []

    def answer(request: rows_pb2.DeleteRowsRequest) -> rows_pb2.DeleteRowsResponse:
        came.append(request)
        return rows_pb2.DeleteRowsResponse(row_count=len(request.keys.values.ends) // 4 - 1)

    with scripted({"DeleteRows": answer}) as address, covector.connect(address) as client:
        collection = client.collection("c")
        assert collection.delete(["a", 1, "b", 2, "c", 3, "d"]) == 4
        assert [keys_in(request) for request in came] == [["a", 1, "b"], [2, "c", 3], ["d"]]
        assert len({request.request_id for request in came}) == 3
        assert {(request.collection, request.where_json) for request in came} == {("c", "")}
        assert collection.delete(keys=[]) == 0
        assert len(came) == 3
        with pytest.raises(InvalidInput, match="a key is a string or an integer"):
            collection.delete(["a", "b", "c", "d", 1.5])  # type: ignore[list-item]
        assert len(came) == 3


@pytest.mark.parametrize(("where", "sent"), [({"a": 1}, '{"a": 1}'), ({}, "{}")])
def test_deleting_by_filter(where: dict[str, Any], sent: str) -> None:
    came: list[rows_pb2.DeleteRowsRequest] = []

    def answer(request: rows_pb2.DeleteRowsRequest) -> rows_pb2.DeleteRowsResponse:
        came.append(request)
        return rows_pb2.DeleteRowsResponse(row_count=5)

    with scripted({"DeleteRows": answer}) as address, covector.connect(address) as client:
        assert client.collection("c").delete(where=where) == 5
    assert [(request.where_json, request.HasField("keys")) for request in came] == [(sent, False)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither keys nor where is given"),
        ({"keys": ["a"], "where": {}}, "keys and where were both given"),
        ({"keys": "abc"}, r"write keys=\['abc'\]"),
        ({"where": [1]}, "where is a dict"),
    ],
)
def test_what_to_delete_is_said_once(arguments: dict[str, Any], message: str) -> None:
    with scripted({}) as address, covector.connect(address) as client:
        collection = client.collection("c")
        with pytest.raises(InvalidInput, match=message):
            collection.delete(**arguments)


def test_compaction_is_an_operation() -> None:
    def start(request: collections_pb2.CompactCollectionRequest) -> collections_pb2.CompactCollectionResponse:
        assert request.collection == "c"
        assert len(request.request_id) == 36
        return collections_pb2.CompactCollectionResponse(operation=running("compact"))

    def wait(request: operations_pb2.WaitOperationRequest) -> operations_pb2.WaitOperationResponse:
        return operations_pb2.WaitOperationResponse(operation=done(request.id, '{"rows": 3}'))

    collection = collections_pb2.GetCollectionResponse(collection=described(deleted_row_count=3))
    answers: Answers = {"CompactCollection": start, "WaitOperation": wait, "GetCollection": lambda request: collection}
    with scripted(answers) as address, covector.connect(address) as client:
        assert client.collection("c").deleted_count() == 3
        operation = client.collection("c").compact()
        assert operation.kind == "compact"
        assert operation.wait() == {"rows": 3}


def running(kind: str) -> operations_pb2.Operation:
    return operations_pb2.Operation(id="op-1", kind=kind, state=operations_pb2.OPERATION_STATE_RUNNING)


def done(name: str, result: str) -> operations_pb2.Operation:
    return operations_pb2.Operation(id=name, state=operations_pb2.OPERATION_STATE_SUCCEEDED, result_json=result)


def test_snapshots() -> None:
    deleted: list[str] = []

    def start(request: admin_pb2.CreateSnapshotRequest) -> admin_pb2.CreateSnapshotResponse:
        assert len(request.request_id) == 36
        return admin_pb2.CreateSnapshotResponse(operation=done(request.name, "{}"))

    def page(request: admin_pb2.ListSnapshotsRequest) -> admin_pb2.ListSnapshotsResponse:
        name, token = ("b", "") if request.page_token else ("a", "next")
        found = admin_pb2.Snapshot(name=name, created_at_s=5, path=f"snapshots/{name}", row_count=2, size_bytes=9)
        return admin_pb2.ListSnapshotsResponse(snapshots=[found], next_page_token=token)

    def delete(request: admin_pb2.DeleteSnapshotRequest) -> admin_pb2.DeleteSnapshotResponse:
        deleted.append(request.name)
        return admin_pb2.DeleteSnapshotResponse()

    answers: Answers = {"CreateSnapshot": start, "ListSnapshots": page, "DeleteSnapshot": delete}
    with scripted(answers) as address, covector.connect(address) as client:
        assert client.snapshot("monday").id == "monday"
        assert client.snapshots() == [
            covector.SnapshotInfo("a", 5, "snapshots/a", 2, 9),
            covector.SnapshotInfo("b", 5, "snapshots/b", 2, 9),
        ]
        client.delete_snapshot("a")
    assert deleted == ["a"]


def test_status() -> None:
    sent = admin_pb2.GetStatusResponse(
        version="0.2", format_version=2, disk_free_bytes=100, disk_low_water_bytes=10, scrubbed_bytes=3
    )
    with scripted({"GetStatus": lambda request: sent}) as address, covector.connect(address) as client:
        status = client.status()
        assert status == covector.StoreStatus("0.2", 2, 100, 10, {}, {}, 3, None, 0)
        assert status.healthy
        sent.disk_low_water_bytes = 101
        assert not client.status().healthy
        sent.disk_low_water_bytes = 100
        assert client.status().healthy
        sent.read_only_collections.add(collection="b", reason="a sync failed")
        for name in ("c", "d", "c"):
            sent.damages.add(collection=name, damage=DAMAGE)
        status = client.status()
    assert not status.healthy
    assert status.read_only_collections == {"b": "a sync failed"}
    assert status.damages == {"c": (READ, READ), "d": (READ,)}


def test_damage_that_a_query_left_out() -> None:
    came: list[query_pb2.QuerySpec] = []

    def answer(request: query_pb2.QueryOnceRequest) -> query_pb2.QueryOnceResponse:
        came.append(request.spec.query)
        damages = [DAMAGE] if came[-1].damaged == query_pb2.DAMAGED_ROWS_OMIT else []
        return query_pb2.QueryOnceResponse(summary=query_pb2.QuerySummary(result_count=1, damages=damages))

    with scripted({"QueryOnce": answer}) as address, covector.connect(address) as client:
        collection = client.collection("c")
        assert collection.query(np.ones(3)).damages == ()
        assert collection.query(np.ones(3), damaged="omit").damages == (READ,)
        with pytest.raises(InvalidInput, match="damaged is one of 'error', 'omit', not 'skip'"):
            collection.query(np.ones(3), damaged="skip")  # type: ignore[arg-type]
    assert [spec.damaged for spec in came] == [query_pb2.DAMAGED_ROWS_FAIL, query_pb2.DAMAGED_ROWS_OMIT]


def test_damage_is_collected_while_scores_are_read() -> None:
    def block(*keys: int, damages: int = 0) -> query_pb2.ScoresResponse:
        column = to_message(key_column(keys)) if keys else None
        scores = np.arange(len(keys), dtype="<f4").tobytes()
        return query_pb2.ScoresResponse(
            keys={"values": column} if keys else None, scores=scores, result_count=1 if keys else 0,
            damages=[DAMAGE] * damages,
        )  # fmt: skip

    def answer(requests: list[query_pb2.ScoresRequest]) -> list[query_pb2.ScoresResponse]:
        if requests[0].spec.damaged != query_pb2.DAMAGED_ROWS_OMIT:
            raise Corrupt("chunk 3 is damaged")
        return [block(1, 2), block(3, damages=1), block(damages=2)]

    with scripted({"Scores": answer}) as address, covector.connect(address) as client:
        scores = client.collection("c").scores(np.ones(3), damaged="omit")
        assert [(keys, scores.damages) for keys, _ in scores] == [([1, 2], ()), ([3], (READ,))]
        assert scores.damages == (READ,) * 3
        assert scores.to_numpy()[0] == [1, 2, 3]
        assert scores.damages == (READ,) * 3
        with pytest.raises(Corrupt, match="chunk 3"):
            client.collection("c").scores(np.ones(3)).to_numpy()
