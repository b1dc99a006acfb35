"""A snapshot's life with real programs: made by a server that takes rows, restored at a shell, served, and judged by
the client that had written more since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import covector
from covector.cli.restore import main as restore
from covector.errors import Corrupt
from covector.testing import ServerProcess
from covector.v1 import admin_pb2, admin_pb2_grpc, operations_pb2, operations_pb2_grpc

DIM = 256
KEYS = [f"key {row}" for row in range(6000)]
GRADIENTS = np.random.default_rng(0).standard_normal((len(KEYS), DIM)).astype(np.float32)


def make_snapshot(address: str, name: str) -> operations_pb2.Operation:
    with grpc.insecure_channel(address) as channel:
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        started = admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(name=name), timeout=30).operation
        request = operations_pb2.WaitOperationRequest(id=started.id, timeout_s=60)
        response: operations_pb2.WaitOperationResponse = operations.WaitOperation(request, timeout=90)
        return response.operation


def write(writer: covector.Writer, start: int, stop: int) -> None:
    writer.add(KEYS[start:stop], GRADIENTS[start:stop])
    writer.flush()


def check_rows(collection: covector.Collection) -> None:
    rows = collection.get(KEYS[: collection.count()], gradients=True, checkpoint="one")
    for row, stored in enumerate(rows):
        assert stored.gradient is not None
        np.testing.assert_allclose(stored.gradient, GRADIENTS[row], rtol=1e-3, atol=2e-3)


def test_a_restored_store_serves_and_tells_the_old_writer(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/socket"
    first = ServerProcess(tmp_path / "store", listen=listen, arguments=["--shard-mib", "1"])
    with first as server, covector.connect(server.address) as client:
        collection = client.create_collection("c", covector.Space(dim=DIM))
        writer = collection.writer("one", retry_s=60)
        write(writer, 0, 500)
        for start in range(500, 3000, 100):
            writer.add(KEYS[start : start + 100], GRADIENTS[start : start + 100])
        assert writer.acknowledged >= 500
        acknowledged = writer.acknowledged  # the rest is still under way
        operation = make_snapshot(server.address, "monday")
        assert operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED
        assert operation.steps_done == operation.steps_total > 0
        write(writer, 3000, 4000)
        server.kill()
        assert restore(["monday", "--data", str(tmp_path / "store"), "--to", str(tmp_path / "restored")]) == 0
        with ServerProcess(tmp_path / "restored", listen=listen):
            assert acknowledged <= collection.count() < 4000
            check_rows(collection)
            with pytest.raises(Corrupt, match="restored from an older state: send the rows again"):
                write(writer, 4000, 6000)
            writer.abort()
            with collection.writer("one") as again:
                again.add(KEYS, GRADIENTS)
            assert collection.count() == len(KEYS)
            check_rows(collection)
        with ServerProcess(tmp_path / "store", listen=listen):  # which knows nothing of all this
            assert collection.count() == 4000
            check_rows(collection)
