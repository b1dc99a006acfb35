from covector.v1 import operations_pb2 as _operations_pb2
from covector.v1 import query_pb2 as _query_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "format_version", "disk_free_bytes", "disk_low_water_bytes", "read_only_collections", "damages", "scrubbed_bytes", "scrub_total_bytes", "scrub_round_count")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_LOW_WATER_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FIELD_NUMBER: _ClassVar[int]
    SCRUBBED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRUB_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRUB_ROUND_COUNT_FIELD_NUMBER: _ClassVar[int]
    version: str
    format_version: int
    disk_free_bytes: int
    disk_low_water_bytes: int
    read_only_collections: _containers.RepeatedCompositeFieldContainer[ReadOnlyCollection]
    damages: _containers.RepeatedCompositeFieldContainer[CollectionDamage]
    scrubbed_bytes: int
    scrub_total_bytes: int
    scrub_round_count: int
    def __init__(self, version: _Optional[str] = ..., format_version: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., disk_low_water_bytes: _Optional[int] = ..., read_only_collections: _Optional[_Iterable[_Union[ReadOnlyCollection, _Mapping]]] = ..., damages: _Optional[_Iterable[_Union[CollectionDamage, _Mapping]]] = ..., scrubbed_bytes: _Optional[int] = ..., scrub_total_bytes: _Optional[int] = ..., scrub_round_count: _Optional[int] = ...) -> None: ...

class ReadOnlyCollection(_message.Message):
    __slots__ = ("collection", "reason")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    collection: str
    reason: str
    def __init__(self, collection: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CollectionDamage(_message.Message):
    __slots__ = ("collection", "damage")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    DAMAGE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    damage: _query_pb2.Damage
    def __init__(self, collection: _Optional[str] = ..., damage: _Optional[_Union[_query_pb2.Damage, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("name", "created_at_s", "path", "row_count", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    created_at_s: int
    path: str
    row_count: int
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., created_at_s: _Optional[int] = ..., path: _Optional[str] = ..., row_count: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class CreateSnapshotRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateSnapshotResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operations_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots", "next_page_token")
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    next_page_token: str
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
