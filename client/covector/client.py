"""The door: connect to a server, find or make collections, and look after the store."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Self

from covector.collection import Collection
from covector.connection import Connection, Tls
from covector.errors import InvalidInput, Unavailable
from covector.messages import snapshot_from_message, space_to_message, status_from_message
from covector.operation import Operation
from covector.types import SnapshotInfo, Space, StoreStatus
from covector.v1 import admin_pb2
from covector.v1 import collections_pb2 as pb


def connect(address: str, *, api_key: str | None = None, tls: Tls = None, timeout_s: float = 30.0) -> Client:
    """Connects to the server at ``host:port`` or ``unix:/path``, and checks that it answers.

    tls: True for the system's certificate authorities, or one's own as PEM bytes or the path of a file. timeout_s: for
    how long a call may take, and for how long a stream may be silent. Raises Unavailable if nobody answers,
    Unauthenticated if the server wants another api_key.
    """
    connection = Connection(address, api_key=api_key, tls=tls, timeout_s=timeout_s)
    try:
        connection.call(connection.collections.ListCollections, pb.ListCollectionsRequest(page_size=1))
    except Unavailable as error:
        connection.close()
        raise Unavailable(
            f"no covector server answers at {address} ({error.message}); start one: "
            f"covector serve --data DIR --listen {address}",
            address=address,
        ) from error
    except BaseException:
        connection.close()
        raise
    return Client(connection)


class Client:
    """A connection to a server. Made by ``connect``; a context manager; thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def address(self) -> str:
        """The address that was connected to."""
        return self._connection.address

    def create_collection(self, name: str, space: Space, *, exist_ok: bool = False) -> Collection:
        """Makes a collection. AlreadyExists if the name is taken, unless ``exist_ok`` and the space is the same."""
        if not isinstance(space, Space):
            raise InvalidInput(f"space is a covector.Space, such as Space(dim=4096), not {space!r}", field="space")
        request = pb.CreateCollectionRequest(
            name=name, space=space_to_message(space), exist_ok=exist_ok, request_id=str(uuid.uuid4())
        )
        response = self._connection.call(self._connection.collections.CreateCollection, request)
        return Collection(self._connection, response.collection)

    def collection(self, name: str) -> Collection:
        """The collection of this name. NotFound names the near ones."""
        request = pb.GetCollectionRequest(name=name)
        response = self._connection.call(self._connection.collections.GetCollection, request)
        return Collection(self._connection, response.collection)

    def collections(self) -> list[Collection]:
        """All collections, by name."""
        pages = self._connection.pages(self._connection.collections.ListCollections, pb.ListCollectionsRequest())
        return [Collection(self._connection, message) for page in pages for message in page.collections]

    def delete_collection(self, name: str) -> int:
        """Deletes a collection with all its rows, and returns how many there were. NotFound if there is none."""
        request = pb.DeleteCollectionRequest(name=name, request_id=str(uuid.uuid4()))
        return int(self._connection.call(self._connection.collections.DeleteCollection, request).row_count)

    def snapshot(self, name: str) -> Operation:
        """Starts a snapshot of the whole store, while ingest goes on. AlreadyExists if the name is taken."""
        request = admin_pb2.CreateSnapshotRequest(name=name, request_id=str(uuid.uuid4()))
        response = self._connection.call(self._connection.admin.CreateSnapshot, request)
        return Operation(self._connection, response.operation)

    def snapshots(self) -> list[SnapshotInfo]:
        """All snapshots, by name."""
        pages = self._connection.pages(self._connection.admin.ListSnapshots, admin_pb2.ListSnapshotsRequest())
        return [snapshot_from_message(message) for page in pages for message in page.snapshots]

    def delete_snapshot(self, name: str) -> None:
        """Deletes a snapshot; the store is not touched. NotFound names the near ones."""
        self._connection.call(self._connection.admin.DeleteSnapshot, admin_pb2.DeleteSnapshotRequest(name=name))

    def status(self) -> StoreStatus:
        """How the store is: space, damage found, collections that take no rows."""
        response = self._connection.call(self._connection.admin.GetStatus, admin_pb2.GetStatusRequest())
        return status_from_message(response)

    def close(self) -> None:
        """Closes the connection; its collections and writers cannot be used any more."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"
