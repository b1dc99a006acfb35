"""Compaction through the wire, while a client writes; and offline, on the files."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.faults.erasure_judge import files_with

import covector
from covector.blocks import column_to_message, key_column
from covector.testing import ServerProcess
from covector.v1 import collections_pb2, operations_pb2, operations_pb2_grpc, rows_pb2, rows_pb2_grpc, types_pb2
from covector.v1.collections_pb2_grpc import CollectionsServiceStub

DIM = 256
SECRET = "the secret text"


def delete(channel: grpc.Channel, keys: list[str]) -> int:
    column = types_pb2.KeyColumn(values=column_to_message(key_column(keys)))
    request = rows_pb2.DeleteRowsRequest(collection="c", keys=column, request_id=str(uuid.uuid4()))
    return rows_pb2_grpc.RowsServiceStub(channel).DeleteRows(request).row_count  # type: ignore[no-any-return]


def wait(channel: grpc.Channel, operation_id: str) -> operations_pb2.Operation:
    request = operations_pb2.WaitOperationRequest(id=operation_id, timeout_s=30)
    return operations_pb2_grpc.OperationsServiceStub(channel).WaitOperation(request).operation  # type: ignore[no-any-return]


def offline(data: Path) -> subprocess.CompletedProcess[str]:
    code = f"import pathlib; from covector.cli.compact_offline import compact_files; compact_files('c', {str(data)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("share", ["0", "0.05"])
def test_a_deleted_row_is_gone_after_a_compaction(tmp_path: Path, share: str) -> None:
    gradients = np.random.default_rng(0).standard_normal((3000, DIM)).astype(np.float32)
    keys = [f"key {row}" for row in range(3000)]
    data = tmp_path / "store"
    with (
        ServerProcess(data, arguments=["--shard-mib", "1", "--compact-share", share]) as server,
        covector.connect(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        collection = client.create_collection("c", covector.Space(dim=DIM))
        with collection.writer("one") as writer:
            writer.add(keys[:2000], gradients[:2000])
        with collection.writer("one") as writer:
            writer.add(["secret"], gradients[:1], texts=[SECRET])
        assert files_with(data, SECRET.encode())
        assert delete(channel, ["secret", *keys[:400]]) == 401
        stub = CollectionsServiceStub(channel)
        assert stub.GetCollection(collections_pb2.GetCollectionRequest(name="c")).collection.deleted_row_count == 401
        request = collections_pb2.CompactCollectionRequest(collection="c", request_id=str(uuid.uuid4()))
        operation = stub.CompactCollection(request).operation
        with collection.writer("one") as writer:
            writer.add(keys[2000:], gradients[2000:])
        assert stub.CompactCollection(request).operation.id == operation.id
        ended = wait(channel, operation.id)
        assert ended.state == operations_pb2.OPERATION_STATE_SUCCEEDED, ended.error_message
        result = json.loads(ended.result_json)
        assert result["rows_erased"] == 401
        assert result["checkpoints"]["one"]["action"] == ("erased" if share == "0" else "compacted")
        assert (result["bytes_freed"] > 401 * 2 * DIM) == (share != "0")
        assert files_with(data, SECRET.encode()) == []
        assert stub.GetCollection(collections_pb2.GetCollectionRequest(name="c")).collection.deleted_row_count == 0
        assert collection.count() == 2600
        for row, stored in enumerate(collection.get(keys[400:], gradients=True, checkpoint="one")):
            assert stored.gradient is not None
            np.testing.assert_allclose(stored.gradient, gradients[400 + row], rtol=1e-3, atol=2e-3)
        beside = offline(data)
        assert beside.returncode == 2
        assert "covector compact c --to HOST:PORT" in beside.stderr
        delete(channel, [keys[500]])
    alone = offline(data)
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["rows_erased"] == 1
