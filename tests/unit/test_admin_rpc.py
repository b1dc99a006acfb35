"""AdminService over a real server: the state of a store, and snapshots made, listed and deleted."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from covector import __version__
from covector.errors import (
    AlreadyExists,
    CovectorError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Unavailable,
    from_rpc_error,
)
from covector.testing import ServerProcess
from covector.types import Space
from covector.v1 import admin_pb2 as pb
from covector.v1 import admin_pb2_grpc, operations_pb2, operations_pb2_grpc, query_pb2
from covector_server.ingest.committer import Committer
from covector_server.jobs.operations import SUCCEEDED, Operations
from covector_server.jobs.scrub import ScrubProgress
from covector_server.limits import Limits
from covector_server.metadata.records import FORMAT_VERSION
from covector_server.rpc.admin import AdminParts, AdminServicer, NoScrub
from covector_server.storage.disk import Disk
from covector_server.storage.snapshot import Snapshots
from covector_server.storage.space import FreeSpace
from covector_server.storage.store import Store

Call = Callable[[admin_pb2_grpc.AdminServiceStub], Awaitable[Any]]


class HoldingDisk(Disk):
    """Holds up the making of a snapshot until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.let_go.set()

    def step(self, name: str) -> None:
        assert self.let_go.wait(30)


class Served:
    """The service on a store of its own."""

    def __init__(self, data: Path) -> None:
        self.disk = HoldingDisk()
        self.store = Store(data, disk=self.disk)
        self.committer = Committer(self.store, Limits())
        self.operations = Operations(self.store, self.committer)
        space = FreeSpace(data, 7, lambda path: 1 << 40)
        self.parts = AdminParts(self.store, Snapshots(self.store, space), self.operations, space, Limits())

    def call(self, call: Call) -> Any:
        """The result of a call over the wire, its error as covector's own."""
        return asyncio.run(self._call(call))

    async def _call(self, call: Call) -> Any:
        server = grpc.aio.server()
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(self.parts), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await call(admin_pb2_grpc.AdminServiceStub(channel))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            await server.stop(None)

    def create(self, name: str, request_id: str = "") -> operations_pb2.Operation:
        request = pb.CreateSnapshotRequest(name=name, request_id=request_id)
        response = self.call(lambda stub: stub.CreateSnapshot(request))
        assert isinstance(response, pb.CreateSnapshotResponse)
        return response.operation

    def made(self, name: str) -> None:
        assert self.operations.wait(self.create(name).id, 30).state == SUCCEEDED

    def close(self) -> None:
        self.disk.let_go.set()
        self.operations.stop()
        self.committer.stop()
        self.store.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "store")
    yield made
    made.close()


def test_the_status_of_a_store(served: Served) -> None:
    status = served.call(lambda stub: stub.GetStatus(pb.GetStatusRequest()))
    assert status == pb.GetStatusResponse(
        version=__version__, format_version=FORMAT_VERSION, disk_free_bytes=1 << 40, disk_low_water_bytes=7
    )


@dataclass(frozen=True)
class Damage:
    """Damage that was found."""

    checkpoint: str = "one"
    path: str = "a/b"
    message: str = "bad"
    row_count: int = 3


class Damages:
    """A log of it."""

    def found(self) -> list[tuple[str, Damage]]:
        return [("c", Damage())]


def test_the_status_names_damage_and_collections_that_take_nothing(served: Served) -> None:
    for name in "dcb":
        served.store.create_collection(name, Space(dim=2), exist_ok=False)
    served.store.collection("c").read_only = Unavailable("a sync failed")
    served.store.collection("d").fault = Unavailable("damaged")
    served.parts = replace(served.parts, damages=Damages(), scrub=NoScrub(ScrubProgress(5, 9, 2)))
    status = served.call(lambda stub: stub.GetStatus(pb.GetStatusRequest()))
    assert [(each.collection, each.reason) for each in status.read_only_collections] == [
        ("c", "a sync failed"),
        ("d", "damaged"),
    ]
    damage = query_pb2.Damage(checkpoint="one", path="a/b", message="bad", row_count=3)
    assert list(status.damages) == [pb.CollectionDamage(collection="c", damage=damage)]
    assert (status.scrubbed_bytes, status.scrub_total_bytes, status.scrub_round_count) == (5, 9, 2)


def test_snapshots_are_made_listed_in_pages_and_deleted(served: Served) -> None:
    served.store.create_collection("c", Space(dim=2), exist_ok=False)
    for name in ("s-2", "s-1", "s-3"):
        served.made(name)

    def page(token: str) -> pb.ListSnapshotsResponse:
        request = pb.ListSnapshotsRequest(page_size=2, page_token=token)
        response = served.call(lambda stub: stub.ListSnapshots(request))
        assert isinstance(response, pb.ListSnapshotsResponse)
        return response

    first = page("")
    assert [snapshot.name for snapshot in first.snapshots] == ["s-1", "s-2"]
    snapshot = first.snapshots[0]
    assert snapshot.path == "snapshots/s-1"
    assert (served.store.data / snapshot.path / "catalog.lmdb").exists()
    assert snapshot.size_bytes > 0
    assert snapshot.created_at_s > 1_700_000_000
    last = page(first.next_page_token)
    assert ([snapshot.name for snapshot in last.snapshots], last.next_page_token) == (["s-3"], "")
    served.call(lambda stub: stub.DeleteSnapshot(pb.DeleteSnapshotRequest(name="s-2")))
    assert [snapshot.name for snapshot in page("").snapshots] == ["s-1", "s-3"]
    with pytest.raises(NotFound, match="no snapshot 's-2'"):
        served.call(lambda stub: stub.DeleteSnapshot(pb.DeleteSnapshotRequest(name="s-2")))


def test_the_same_request_is_the_same_operation(served: Served) -> None:
    request_id = str(uuid.uuid4())
    served.disk.let_go.clear()
    first = served.create("s", request_id)
    assert served.create("s", request_id).id == first.id == request_id
    with pytest.raises(AlreadyExists, match="choose another name"):
        served.create("s")
    served.disk.let_go.set()
    assert served.operations.wait(request_id, 30).state == SUCCEEDED
    assert served.create("s", request_id).state == operations_pb2.OPERATION_STATE_SUCCEEDED
    with pytest.raises(AlreadyExists, match="choose another name"):
        served.create("s", str(uuid.uuid4()))


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a b", "x" * 201, "-", "é"])
def test_names_are_checked(served: Served, name: str) -> None:
    with pytest.raises(InvalidInput, match="no snapshot name"):
        served.create(name)
    with pytest.raises(InvalidInput, match="no snapshot name"):
        served.call(lambda stub: stub.DeleteSnapshot(pb.DeleteSnapshotRequest(name=name)))


def test_limits(served: Served) -> None:
    served.parts = replace(served.parts, limits=Limits(snapshots=1))
    served.made("s")
    with pytest.raises(LimitExceeded, match="snapshots=1"):
        served.create("t")
    with pytest.raises(LimitExceeded, match="id_bytes"):
        served.create("u", "x" * 300)


def test_the_server_serves_it(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        status = stub.GetStatus(pb.GetStatusRequest(), timeout=30)
        assert (status.version, status.format_version) == (__version__, FORMAT_VERSION)
        assert status.disk_free_bytes > 0
        assert status.disk_low_water_bytes == 256 << 20
        operation = stub.CreateSnapshot(pb.CreateSnapshotRequest(name="s"), timeout=30).operation
        operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        request = operations_pb2.WaitOperationRequest(id=operation.id, timeout_s=30)
        ended = operations.WaitOperation(request, timeout=60).operation
        assert ended.state == operations_pb2.OPERATION_STATE_SUCCEEDED
        assert (ended.kind, ended.collection) == ("snapshot", "")
        try:
            stub.CreateSnapshot(pb.CreateSnapshotRequest(name="s"), timeout=30)
        except grpc.RpcError as error:
            found: CovectorError = from_rpc_error(error)
            assert isinstance(found, AlreadyExists)
        else:
            pytest.fail("the name was taken")
