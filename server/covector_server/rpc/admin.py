"""AdminService: how the store is, and snapshots of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import grpc

from covector._version import __version__
from covector.v1 import admin_pb2 as pb
from covector.v1 import admin_pb2_grpc, query_pb2
from covector_server.jobs.operations import Operations
from covector_server.jobs.scrub import ScrubProgress
from covector_server.jobs.snapshot import create_snapshot
from covector_server.limits import Limits
from covector_server.metadata.records import OperationRecord
from covector_server.rpc.convert import check_name
from covector_server.rpc.edge import unary
from covector_server.rpc.operations import operation_to_message
from covector_server.rpc.pages import page_of
from covector_server.storage.snapshot import SNAPSHOTS, SnapshotRecord, Snapshots
from covector_server.storage.space import FreeSpace
from covector_server.storage.store import Store

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class FoundDamage(Protocol):
    """Damage to a file of a collection."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def row_count(self) -> int: ...


class Damages(Protocol):
    """What damage was met since the server started."""

    def found(self) -> Sequence[tuple[str, FoundDamage]]:
        """Each damage, with the name of its collection."""
        ...


class Scrub(Protocol):
    """The search for damage."""

    @property
    def progress(self) -> ScrubProgress:
        """How far it is."""
        ...


class NoDamages:
    """``Damages`` where nobody looks."""

    def found(self) -> Sequence[tuple[str, FoundDamage]]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class NoScrub:
    """``Scrub`` where nobody looks."""

    progress: ScrubProgress = field(default_factory=ScrubProgress)


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the service asks."""

    store: Store
    snapshots: Snapshots
    operations: Operations
    space: FreeSpace
    limits: Limits
    damages: Damages = field(default_factory=NoDamages)
    scrub: Scrub = field(default_factory=NoScrub)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Translates; the parts decide."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._starting = asyncio.Lock()

    @unary
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        parts, progress = self._parts, self._parts.scrub.progress
        return pb.GetStatusResponse(
            version=__version__,
            format_version=parts.store.format_version,
            disk_free_bytes=await asyncio.to_thread(parts.space.free_bytes),
            disk_low_water_bytes=parts.space.low_water_bytes,
            read_only_collections=_read_only(parts.store),
            damages=[_damage_to_message(name, damage) for name, damage in parts.damages.found()],
            scrubbed_bytes=progress.checked_bytes,
            scrub_total_bytes=progress.total_bytes,
            scrub_round_count=progress.round_count,
        )

    @unary
    async def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        check_name("snapshot", request.name)
        self._parts.limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        async with self._starting:  # so that a request that comes twice at once is one
            record = await asyncio.to_thread(self._start, request.name, request.request_id)
        return pb.CreateSnapshotResponse(operation=operation_to_message(record))

    @unary
    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        records = await asyncio.to_thread(self._parts.snapshots.records)
        page, token = page_of(
            records, lambda record: record.name, request.page_size, request.page_token, self._parts.limits
        )
        return pb.ListSnapshotsResponse(snapshots=map(_snapshot_to_message, page), next_page_token=token)

    @unary
    async def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Context) -> pb.DeleteSnapshotResponse:
        check_name("snapshot", request.name)
        await asyncio.to_thread(self._parts.snapshots.delete, request.name)
        return pb.DeleteSnapshotResponse()

    def _start(self, name: str, request_id: str) -> OperationRecord:
        parts = self._parts
        if request_id and parts.operations.knows(request_id):
            return parts.operations.get(request_id)
        parts.limits.check("snapshots", len(parts.snapshots.records()) + 1, "snapshots")
        parts.snapshots.reserve(name)
        try:
            return parts.operations.start("snapshot", "", create_snapshot(parts.snapshots, name), request_id)
        except BaseException:
            parts.snapshots.release(name)
            raise


def _read_only(store: Store) -> list[pb.ReadOnlyCollection]:
    reasons = ((each.record.name, each.fault or each.read_only) for each in store.collections())
    return [pb.ReadOnlyCollection(collection=name, reason=reason.message) for name, reason in reasons if reason]


def _damage_to_message(collection: str, damage: FoundDamage) -> pb.CollectionDamage:
    message = query_pb2.Damage(
        checkpoint=damage.checkpoint, path=damage.path, message=damage.message, row_count=damage.row_count
    )
    return pb.CollectionDamage(collection=collection, damage=message)


def _snapshot_to_message(record: SnapshotRecord) -> pb.Snapshot:
    return pb.Snapshot(
        name=record.name,
        created_at_s=record.created_at_s,
        path=f"{SNAPSHOTS}/{record.name}",
        row_count=record.row_count,
        size_bytes=record.size_bytes,
    )
