from covector.v1 import types_pb2 as _types_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetRowsRequest(_message.Message):
    __slots__ = ("collection", "keys", "checkpoint", "gradients")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    keys: _types_pb2.KeyColumn
    checkpoint: str
    gradients: bool
    def __init__(self, collection: _Optional[str] = ..., keys: _Optional[_Union[_types_pb2.KeyColumn, _Mapping]] = ..., checkpoint: _Optional[str] = ..., gradients: bool = ...) -> None: ...

class GetRowsResponse(_message.Message):
    __slots__ = ("row_count", "texts", "metadata", "scales", "gradients")
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    row_count: int
    texts: _types_pb2.BinaryColumn
    metadata: _types_pb2.BinaryColumn
    scales: bytes
    gradients: bytes
    def __init__(self, row_count: _Optional[int] = ..., texts: _Optional[_Union[_types_pb2.BinaryColumn, _Mapping]] = ..., metadata: _Optional[_Union[_types_pb2.BinaryColumn, _Mapping]] = ..., scales: _Optional[bytes] = ..., gradients: _Optional[bytes] = ...) -> None: ...

class ListMissingRequest(_message.Message):
    __slots__ = ("collection", "checkpoint", "keys")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    checkpoint: str
    keys: _types_pb2.KeyColumn
    def __init__(self, collection: _Optional[str] = ..., checkpoint: _Optional[str] = ..., keys: _Optional[_Union[_types_pb2.KeyColumn, _Mapping]] = ...) -> None: ...

class ListMissingResponse(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: bytes
    def __init__(self, positions: _Optional[bytes] = ...) -> None: ...

class CountRowsRequest(_message.Message):
    __slots__ = ("collection", "where_json")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WHERE_JSON_FIELD_NUMBER: _ClassVar[int]
    collection: str
    where_json: str
    def __init__(self, collection: _Optional[str] = ..., where_json: _Optional[str] = ...) -> None: ...

class CountRowsResponse(_message.Message):
    __slots__ = ("row_count",)
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    row_count: int
    def __init__(self, row_count: _Optional[int] = ...) -> None: ...

class DeleteRowsRequest(_message.Message):
    __slots__ = ("collection", "keys", "where_json", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WHERE_JSON_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    keys: _types_pb2.KeyColumn
    where_json: str
    request_id: str
    def __init__(self, collection: _Optional[str] = ..., keys: _Optional[_Union[_types_pb2.KeyColumn, _Mapping]] = ..., where_json: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteRowsResponse(_message.Message):
    __slots__ = ("row_count",)
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    row_count: int
    def __init__(self, row_count: _Optional[int] = ...) -> None: ...
