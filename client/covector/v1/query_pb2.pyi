from covector.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reduce(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REDUCE_UNSPECIFIED: _ClassVar[Reduce]
    REDUCE_MEAN: _ClassVar[Reduce]
    REDUCE_MAX: _ClassVar[Reduce]

class MissingRows(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISSING_ROWS_UNSPECIFIED: _ClassVar[MissingRows]
    MISSING_ROWS_OMIT: _ClassVar[MissingRows]
    MISSING_ROWS_ZERO: _ClassVar[MissingRows]

class DamagedRows(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DAMAGED_ROWS_UNSPECIFIED: _ClassVar[DamagedRows]
    DAMAGED_ROWS_FAIL: _ClassVar[DamagedRows]
    DAMAGED_ROWS_OMIT: _ClassVar[DamagedRows]
REDUCE_UNSPECIFIED: Reduce
REDUCE_MEAN: Reduce
REDUCE_MAX: Reduce
MISSING_ROWS_UNSPECIFIED: MissingRows
MISSING_ROWS_OMIT: MissingRows
MISSING_ROWS_ZERO: MissingRows
DAMAGED_ROWS_UNSPECIFIED: DamagedRows
DAMAGED_ROWS_FAIL: DamagedRows
DAMAGED_ROWS_OMIT: DamagedRows

class Damage(_message.Message):
    __slots__ = ("checkpoint", "path", "message", "row_count")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    path: str
    message: str
    row_count: int
    def __init__(self, checkpoint: _Optional[str] = ..., path: _Optional[str] = ..., message: _Optional[str] = ..., row_count: _Optional[int] = ...) -> None: ...

class CheckpointQuery(_message.Message):
    __slots__ = ("name", "weights_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    weights_digest: str
    def __init__(self, name: _Optional[str] = ..., weights_digest: _Optional[str] = ...) -> None: ...

class QuerySpec(_message.Message):
    __slots__ = ("collection", "checkpoints", "query_count", "scorer", "where_json", "groups", "reduce", "missing", "space", "kind", "exact", "damaged", "stored_keys", "self_influence")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    QUERY_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    WHERE_JSON_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    STORED_KEYS_FIELD_NUMBER: _ClassVar[int]
    SELF_INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointQuery]
    query_count: int
    scorer: str
    where_json: str
    groups: _containers.RepeatedScalarFieldContainer[int]
    reduce: Reduce
    missing: MissingRows
    space: _types_pb2.Space
    kind: _types_pb2.GradientKind
    exact: bool
    damaged: DamagedRows
    stored_keys: _types_pb2.KeyColumn
    self_influence: bool
    def __init__(self, collection: _Optional[str] = ..., checkpoints: _Optional[_Iterable[_Union[CheckpointQuery, _Mapping]]] = ..., query_count: _Optional[int] = ..., scorer: _Optional[str] = ..., where_json: _Optional[str] = ..., groups: _Optional[_Iterable[int]] = ..., reduce: _Optional[_Union[Reduce, str]] = ..., missing: _Optional[_Union[MissingRows, str]] = ..., space: _Optional[_Union[_types_pb2.Space, _Mapping]] = ..., kind: _Optional[_Union[_types_pb2.GradientKind, _Mapping]] = ..., exact: bool = ..., damaged: _Optional[_Union[DamagedRows, str]] = ..., stored_keys: _Optional[_Union[_types_pb2.KeyColumn, _Mapping]] = ..., self_influence: bool = ...) -> None: ...

class VectorPart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("spec", "vectors")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    spec: TopKSpec
    vectors: VectorPart
    def __init__(self, spec: _Optional[_Union[TopKSpec, _Mapping]] = ..., vectors: _Optional[_Union[VectorPart, _Mapping]] = ...) -> None: ...

class TopKSpec(_message.Message):
    __slots__ = ("query", "k", "keys_only", "offset", "group_by")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    KEYS_ONLY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    query: QuerySpec
    k: int
    keys_only: bool
    offset: int
    group_by: str
    def __init__(self, query: _Optional[_Union[QuerySpec, _Mapping]] = ..., k: _Optional[int] = ..., keys_only: bool = ..., offset: _Optional[int] = ..., group_by: _Optional[str] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("name", "rows_in", "rows_out", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_IN_FIELD_NUMBER: _ClassVar[int]
    ROWS_OUT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows_in: int
    rows_out: int
    seconds: float
    def __init__(self, name: _Optional[str] = ..., rows_in: _Optional[int] = ..., rows_out: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class QuerySummary(_message.Message):
    __slots__ = ("exact", "stages", "index", "fit", "result_count", "scorer", "damages", "reason", "damping", "damping_unit")
    EXACT_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    RESULT_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    DAMPING_UNIT_FIELD_NUMBER: _ClassVar[int]
    exact: bool
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    index: str
    fit: str
    result_count: int
    scorer: str
    damages: _containers.RepeatedCompositeFieldContainer[Damage]
    reason: str
    damping: float
    damping_unit: str
    def __init__(self, exact: bool = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., index: _Optional[str] = ..., fit: _Optional[str] = ..., result_count: _Optional[int] = ..., scorer: _Optional[str] = ..., damages: _Optional[_Iterable[_Union[Damage, _Mapping]]] = ..., reason: _Optional[str] = ..., damping: _Optional[float] = ..., damping_unit: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("key", "score", "text", "metadata_json")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    score: float
    text: str
    metadata_json: str
    def __init__(self, key: _Optional[bytes] = ..., score: _Optional[float] = ..., text: _Optional[str] = ..., metadata_json: _Optional[str] = ...) -> None: ...

class ResultHits(_message.Message):
    __slots__ = ("result_index", "proponents", "opponents")
    RESULT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROPONENTS_FIELD_NUMBER: _ClassVar[int]
    OPPONENTS_FIELD_NUMBER: _ClassVar[int]
    result_index: int
    proponents: _containers.RepeatedCompositeFieldContainer[Hit]
    opponents: _containers.RepeatedCompositeFieldContainer[Hit]
    def __init__(self, result_index: _Optional[int] = ..., proponents: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., opponents: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ...) -> None: ...

class GroupHits(_message.Message):
    __slots__ = ("result_index", "value_json", "row_count", "score_sum", "proponents", "opponents")
    RESULT_INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_JSON_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCORE_SUM_FIELD_NUMBER: _ClassVar[int]
    PROPONENTS_FIELD_NUMBER: _ClassVar[int]
    OPPONENTS_FIELD_NUMBER: _ClassVar[int]
    result_index: int
    value_json: str
    row_count: int
    score_sum: float
    proponents: _containers.RepeatedCompositeFieldContainer[Hit]
    opponents: _containers.RepeatedCompositeFieldContainer[Hit]
    def __init__(self, result_index: _Optional[int] = ..., value_json: _Optional[str] = ..., row_count: _Optional[int] = ..., score_sum: _Optional[float] = ..., proponents: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., opponents: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("summary", "hits", "group")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    summary: QuerySummary
    hits: ResultHits
    group: GroupHits
    def __init__(self, summary: _Optional[_Union[QuerySummary, _Mapping]] = ..., hits: _Optional[_Union[ResultHits, _Mapping]] = ..., group: _Optional[_Union[GroupHits, _Mapping]] = ...) -> None: ...

class QueryOnceRequest(_message.Message):
    __slots__ = ("spec", "vectors")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    spec: TopKSpec
    vectors: bytes
    def __init__(self, spec: _Optional[_Union[TopKSpec, _Mapping]] = ..., vectors: _Optional[bytes] = ...) -> None: ...

class QueryOnceResponse(_message.Message):
    __slots__ = ("summary", "hits", "too_large")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    TOO_LARGE_FIELD_NUMBER: _ClassVar[int]
    summary: QuerySummary
    hits: _containers.RepeatedCompositeFieldContainer[ResultHits]
    too_large: bool
    def __init__(self, summary: _Optional[_Union[QuerySummary, _Mapping]] = ..., hits: _Optional[_Iterable[_Union[ResultHits, _Mapping]]] = ..., too_large: bool = ...) -> None: ...

class ScoresRequest(_message.Message):
    __slots__ = ("spec", "vectors")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    spec: QuerySpec
    vectors: VectorPart
    def __init__(self, spec: _Optional[_Union[QuerySpec, _Mapping]] = ..., vectors: _Optional[_Union[VectorPart, _Mapping]] = ...) -> None: ...

class ScoresResponse(_message.Message):
    __slots__ = ("keys", "scores", "result_count", "damages", "fit", "damping", "damping_unit")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    RESULT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    DAMPING_UNIT_FIELD_NUMBER: _ClassVar[int]
    keys: _types_pb2.KeyColumn
    scores: bytes
    result_count: int
    damages: _containers.RepeatedCompositeFieldContainer[Damage]
    fit: str
    damping: float
    damping_unit: str
    def __init__(self, keys: _Optional[_Union[_types_pb2.KeyColumn, _Mapping]] = ..., scores: _Optional[bytes] = ..., result_count: _Optional[int] = ..., damages: _Optional[_Iterable[_Union[Damage, _Mapping]]] = ..., fit: _Optional[str] = ..., damping: _Optional[float] = ..., damping_unit: _Optional[str] = ...) -> None: ...
