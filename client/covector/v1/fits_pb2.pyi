from covector.v1 import operations_pb2 as _operations_pb2
from covector.v1 import query_pb2 as _query_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fit(_message.Message):
    __slots__ = ("id", "method", "checkpoints", "finished", "damping", "damping_unit", "rank", "notes", "row_count", "fresh_row_count", "lost_row_count", "size_bytes", "made_at_s", "parameters_json", "damping_scores")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    DAMPING_UNIT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    FRESH_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOST_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_S_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_FIELD_NUMBER: _ClassVar[int]
    DAMPING_SCORES_FIELD_NUMBER: _ClassVar[int]
    id: str
    method: str
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    finished: bool
    damping: float
    damping_unit: str
    rank: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    row_count: int
    fresh_row_count: int
    lost_row_count: int
    size_bytes: int
    made_at_s: float
    parameters_json: str
    damping_scores: _containers.RepeatedCompositeFieldContainer[DampingScore]
    def __init__(self, id: _Optional[str] = ..., method: _Optional[str] = ..., checkpoints: _Optional[_Iterable[str]] = ..., finished: bool = ..., damping: _Optional[float] = ..., damping_unit: _Optional[str] = ..., rank: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ..., row_count: _Optional[int] = ..., fresh_row_count: _Optional[int] = ..., lost_row_count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., made_at_s: _Optional[float] = ..., parameters_json: _Optional[str] = ..., damping_scores: _Optional[_Iterable[_Union[DampingScore, _Mapping]]] = ...) -> None: ...

class DampingScore(_message.Message):
    __slots__ = ("damping", "score")
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    damping: float
    score: float
    def __init__(self, damping: _Optional[float] = ..., score: _Optional[float] = ...) -> None: ...

class CreateFitRequest(_message.Message):
    __slots__ = ("spec", "task_gradients")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TASK_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    spec: FitSpec
    task_gradients: _query_pb2.VectorPart
    def __init__(self, spec: _Optional[_Union[FitSpec, _Mapping]] = ..., task_gradients: _Optional[_Union[_query_pb2.VectorPart, _Mapping]] = ...) -> None: ...

class FitSpec(_message.Message):
    __slots__ = ("collection", "method", "checkpoints", "damping", "rank", "by_layer", "unit_rows", "range_passes", "task_share", "task_row_count", "request_id", "damping_candidates")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    BY_LAYER_FIELD_NUMBER: _ClassVar[int]
    UNIT_ROWS_FIELD_NUMBER: _ClassVar[int]
    RANGE_PASSES_FIELD_NUMBER: _ClassVar[int]
    TASK_SHARE_FIELD_NUMBER: _ClassVar[int]
    TASK_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DAMPING_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    collection: str
    method: str
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    damping: float
    rank: int
    by_layer: bool
    unit_rows: bool
    range_passes: int
    task_share: float
    task_row_count: int
    request_id: str
    damping_candidates: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, collection: _Optional[str] = ..., method: _Optional[str] = ..., checkpoints: _Optional[_Iterable[str]] = ..., damping: _Optional[float] = ..., rank: _Optional[int] = ..., by_layer: bool = ..., unit_rows: bool = ..., range_passes: _Optional[int] = ..., task_share: _Optional[float] = ..., task_row_count: _Optional[int] = ..., request_id: _Optional[str] = ..., damping_candidates: _Optional[_Iterable[float]] = ...) -> None: ...

class CreateFitResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _operations_pb2.Operation
    def __init__(self, operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ...) -> None: ...

class ListFitsRequest(_message.Message):
    __slots__ = ("collection", "page_size", "page_token")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collection: str
    page_size: int
    page_token: str
    def __init__(self, collection: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFitsResponse(_message.Message):
    __slots__ = ("fits", "next_page_token")
    FITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    fits: _containers.RepeatedCompositeFieldContainer[Fit]
    next_page_token: str
    def __init__(self, fits: _Optional[_Iterable[_Union[Fit, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DropFitRequest(_message.Message):
    __slots__ = ("collection", "id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    collection: str
    id: str
    def __init__(self, collection: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class DropFitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
