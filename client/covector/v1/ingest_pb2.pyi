from covector.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConflictPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFLICT_POLICY_UNSPECIFIED: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_ERROR: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_IGNORE: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_REPLACE: _ClassVar[ConflictPolicy]
CONFLICT_POLICY_UNSPECIFIED: ConflictPolicy
CONFLICT_POLICY_ERROR: ConflictPolicy
CONFLICT_POLICY_IGNORE: ConflictPolicy
CONFLICT_POLICY_REPLACE: ConflictPolicy

class IngestRequest(_message.Message):
    __slots__ = ("open", "batch", "part")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    open: OpenWriter
    batch: Batch
    part: BatchPart
    def __init__(self, open: _Optional[_Union[OpenWriter, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., part: _Optional[_Union[BatchPart, _Mapping]] = ...) -> None: ...

class OpenWriter(_message.Message):
    __slots__ = ("collection", "writer_id", "checkpoint", "eta", "weights_digest", "kind", "space", "on_conflict", "cumulative_acknowledgements")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    WRITER_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    ON_CONFLICT_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_ACKNOWLEDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    collection: str
    writer_id: str
    checkpoint: str
    eta: float
    weights_digest: str
    kind: _types_pb2.GradientKind
    space: _types_pb2.Space
    on_conflict: ConflictPolicy
    cumulative_acknowledgements: bool
    def __init__(self, collection: _Optional[str] = ..., writer_id: _Optional[str] = ..., checkpoint: _Optional[str] = ..., eta: _Optional[float] = ..., weights_digest: _Optional[str] = ..., kind: _Optional[_Union[_types_pb2.GradientKind, _Mapping]] = ..., space: _Optional[_Union[_types_pb2.Space, _Mapping]] = ..., on_conflict: _Optional[_Union[ConflictPolicy, str]] = ..., cumulative_acknowledgements: bool = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("sequence", "row_count", "keys", "scales", "trak_q", "texts", "metadata", "gradients_crc32", "gradients_size", "gradients_sum64", "gradients")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    TRAK_Q_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_CRC32_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_SUM64_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    row_count: int
    keys: _types_pb2.KeyColumn
    scales: bytes
    trak_q: bytes
    texts: _types_pb2.BinaryColumn
    metadata: _types_pb2.BinaryColumn
    gradients_crc32: int
    gradients_size: int
    gradients_sum64: int
    gradients: bytes
    def __init__(self, sequence: _Optional[int] = ..., row_count: _Optional[int] = ..., keys: _Optional[_Union[_types_pb2.KeyColumn, _Mapping]] = ..., scales: _Optional[bytes] = ..., trak_q: _Optional[bytes] = ..., texts: _Optional[_Union[_types_pb2.BinaryColumn, _Mapping]] = ..., metadata: _Optional[_Union[_types_pb2.BinaryColumn, _Mapping]] = ..., gradients_crc32: _Optional[int] = ..., gradients_size: _Optional[int] = ..., gradients_sum64: _Optional[int] = ..., gradients: _Optional[bytes] = ...) -> None: ...

class BatchPart(_message.Message):
    __slots__ = ("gradients",)
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    gradients: bytes
    def __init__(self, gradients: _Optional[bytes] = ...) -> None: ...

class IngestResponse(_message.Message):
    __slots__ = ("opened", "acknowledged")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    opened: WriterOpened
    acknowledged: BatchAcknowledged
    def __init__(self, opened: _Optional[_Union[WriterOpened, _Mapping]] = ..., acknowledged: _Optional[_Union[BatchAcknowledged, _Mapping]] = ...) -> None: ...

class WriterOpened(_message.Message):
    __slots__ = ("last_sequence", "dim", "message_bytes_max", "batch_bytes_max", "batch_rows_max")
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    BATCH_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    last_sequence: int
    dim: int
    message_bytes_max: int
    batch_bytes_max: int
    batch_rows_max: int
    def __init__(self, last_sequence: _Optional[int] = ..., dim: _Optional[int] = ..., message_bytes_max: _Optional[int] = ..., batch_bytes_max: _Optional[int] = ..., batch_rows_max: _Optional[int] = ...) -> None: ...

class BatchAcknowledged(_message.Message):
    __slots__ = ("sequence", "stored_row_count", "duplicate_row_count", "zero_row_count")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STORED_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    ZERO_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    stored_row_count: int
    duplicate_row_count: int
    zero_row_count: int
    def __init__(self, sequence: _Optional[int] = ..., stored_row_count: _Optional[int] = ..., duplicate_row_count: _Optional[int] = ..., zero_row_count: _Optional[int] = ...) -> None: ...
