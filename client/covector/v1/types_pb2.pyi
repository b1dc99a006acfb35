from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DifferentiatedFunction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIFFERENTIATED_FUNCTION_UNSPECIFIED: _ClassVar[DifferentiatedFunction]
    DIFFERENTIATED_FUNCTION_LOSS: _ClassVar[DifferentiatedFunction]
    DIFFERENTIATED_FUNCTION_MARGIN: _ClassVar[DifferentiatedFunction]

class TokenReduction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_REDUCTION_UNSPECIFIED: _ClassVar[TokenReduction]
    TOKEN_REDUCTION_TOKEN_MEAN: _ClassVar[TokenReduction]
    TOKEN_REDUCTION_TOKEN_SUM: _ClassVar[TokenReduction]

class OptimiserCorrection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMISER_CORRECTION_UNSPECIFIED: _ClassVar[OptimiserCorrection]
    OPTIMISER_CORRECTION_NONE: _ClassVar[OptimiserCorrection]
    OPTIMISER_CORRECTION_ADAM: _ClassVar[OptimiserCorrection]
DIFFERENTIATED_FUNCTION_UNSPECIFIED: DifferentiatedFunction
DIFFERENTIATED_FUNCTION_LOSS: DifferentiatedFunction
DIFFERENTIATED_FUNCTION_MARGIN: DifferentiatedFunction
TOKEN_REDUCTION_UNSPECIFIED: TokenReduction
TOKEN_REDUCTION_TOKEN_MEAN: TokenReduction
TOKEN_REDUCTION_TOKEN_SUM: TokenReduction
OPTIMISER_CORRECTION_UNSPECIFIED: OptimiserCorrection
OPTIMISER_CORRECTION_NONE: OptimiserCorrection
OPTIMISER_CORRECTION_ADAM: OptimiserCorrection

class Space(_message.Message):
    __slots__ = ("json", "fingerprint")
    JSON_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    json: str
    fingerprint: str
    def __init__(self, json: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class GradientKind(_message.Message):
    __slots__ = ("function", "token_reduction", "optimiser_correction")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_REDUCTION_FIELD_NUMBER: _ClassVar[int]
    OPTIMISER_CORRECTION_FIELD_NUMBER: _ClassVar[int]
    function: DifferentiatedFunction
    token_reduction: TokenReduction
    optimiser_correction: OptimiserCorrection
    def __init__(self, function: _Optional[_Union[DifferentiatedFunction, str]] = ..., token_reduction: _Optional[_Union[TokenReduction, str]] = ..., optimiser_correction: _Optional[_Union[OptimiserCorrection, str]] = ...) -> None: ...

class BinaryColumn(_message.Message):
    __slots__ = ("data", "ends", "present")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    ends: bytes
    present: bytes
    def __init__(self, data: _Optional[bytes] = ..., ends: _Optional[bytes] = ..., present: _Optional[bytes] = ...) -> None: ...

class KeyColumn(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: BinaryColumn
    def __init__(self, values: _Optional[_Union[BinaryColumn, _Mapping]] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("kind", "message", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    facts: _containers.ScalarMap[str, str]
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...
