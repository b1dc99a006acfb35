"""What users hand in, checked and brought into one form before any of it is sent. Errors name the argument and the
row's key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.columns import Packed, absent, pack, pack_keys, pack_texts
from covector.errors import InvalidInput
from covector.types import GradientKind, Gradients, Key, Metadata, Space

Keys = Sequence[Key] | npt.NDArray[Any]
GradientRows = Gradients | npt.ArrayLike
_SLICE_ELEMENTS = 1 << 20
_FIELDS = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
_PLAIN_TYPES = {str, int, float, bool, type(None)}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where gradients come from; a bare array states nothing."""

    space: Space | None = None
    kind: GradientKind = field(default_factory=GradientKind)
    weights_digest: str | None = None

    def difference(self, other: Origin) -> str | None:
        """What differs between the origins of two arrays, or None."""
        if (self.space is None) != (other.space is None):
            names = [("a bare array", "Gradients")[origin.space is not None] for origin in (self, other)]
            return f"{names[0]} before, {names[1]} now"
        if self.kind != other.kind:
            return f"kind: {self.kind} before, {other.kind} now"
        if self.weights_digest != other.weights_digest:
            return f"weights: {short(self.weights_digest)} before, {short(other.weights_digest)} now"
        return None


@dataclass(frozen=True, slots=True)
class GivenRows:
    """Rows of one call, checked: everything but ``gradients`` (any real dtype, [n, dim], or None) is as it is sent.

    ``keys`` are what ``encoded`` holds, as they were given."""

    keys: list[Key]
    encoded: Packed
    texts: Packed
    metadata: Packed
    gradients: npt.NDArray[Any] | None = None
    trak_q: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.keys)


def short(digest: str | None) -> str:
    """A digest as people read it."""
    return "not stated" if digest is None else digest[:12]


def plain_keys(keys: Keys) -> list[Key]:
    """Keys as Python strings and integers. Raises InvalidInput for what is no sequence of keys."""
    if isinstance(keys, str | bytes | int):
        raise InvalidInput(f"keys is a sequence with one key a row, not {keys!r}; write keys=[{keys!r}]")
    if isinstance(keys, np.ndarray) and keys.ndim != 1:
        raise InvalidInput(f"keys has shape {keys.shape}; it is a sequence with one key a row")
    try:
        return list(keys.tolist() if hasattr(keys, "tolist") else keys)
    except TypeError as error:
        raise InvalidInput(f"keys is a sequence with one key a row, not {type(keys).__name__}") from error


def encoded_keys(keys: Sequence[Key]) -> Packed:
    """Keys in their encoded form. Raises InvalidInput naming the first that is none or stands twice."""
    encoded = pack_keys(keys)
    if len(set(keys)) < len(keys):
        seen: set[Key] = set()
        for row, key in enumerate(keys):
            if key in seen:
                raise InvalidInput(f"key {key!r} stands twice in one call (again at row {row})", key=key)
            seen.add(key)
    return encoded


def given_rows(
    keys: Keys,
    texts: Sequence[str | None] | None,
    metadata: Sequence[Metadata | None] | None,
    *,
    gradients: npt.NDArray[Any] | None = None,
    trak_q: npt.ArrayLike | None = None,
) -> GivenRows:
    """The rows of one call, all of them checked, gradients included. Raises InvalidInput; nothing was sent then."""
    plain = plain_keys(keys)
    if gradients is not None:
        _check_length("gradients", len(gradients), plain)
        _check_finite(gradients, plain)
    return GivenRows(
        keys=plain,
        encoded=encoded_keys(plain),
        texts=_encoded_texts(texts, plain),
        metadata=_encoded_metadata(metadata, plain),
        gradients=gradients,
        trak_q=None if trak_q is None else _checked_trak_q(trak_q, plain),
    )


def gradient_array(gradients: GradientRows, dim: int, name: str = "gradients") -> npt.NDArray[Any]:
    """The array behind ``gradients``, not copied if it is one. Raises InvalidInput unless it is float[n, dim]."""
    array = _real_array(gradients.values if isinstance(gradients, Gradients) else gradients, name)
    if array.ndim == 1 and array.size == 0:
        return array.reshape(0, dim)
    if array.ndim == 1:
        raise InvalidInput(f"{name} has shape {array.shape}, not [n, {dim}]; write {name}[None, :] for a single row")
    if array.ndim != 2 or array.shape[1] != dim:
        raise InvalidInput(f"{name} has shape {list(array.shape)}; this collection needs [n, {dim}]", field="dim")
    return array


def query_array(queries: GradientRows, dim: int, name: str = "queries") -> npt.NDArray[np.float32]:
    """Query vectors as float32[m, dim], one vector float[dim] included. Raises InvalidInput naming a bad one."""
    array = _real_array(queries.values if isinstance(queries, Gradients) else queries, name)
    if array.ndim not in {1, 2} or array.shape[-1] != dim:
        raise InvalidInput(
            f"{name} has shape {list(array.shape)}; this collection needs [{dim}] or [m, {dim}]", field="dim"
        )
    array = array.reshape(-1, dim)
    if not len(array):
        raise InvalidInput(f"{name} holds no vector")
    with np.errstate(over="ignore"):
        vectors = array.astype("<f4")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InvalidInput(f"{name}: vector {bad[0]} holds NaN or infinity (in float32)", row=bad[0])
    return vectors


def origin_of(gradients: GradientRows, space: Space, collection: str) -> Origin:
    """Where the gradients come from. Raises InvalidInput naming the field if it is not the collection's space."""
    if not isinstance(gradients, Gradients):
        return Origin()
    difference = space.difference(gradients.space)
    if difference is not None:
        field_name = difference.partition(":")[0]
        message = f"these gradients are from another space than collection {collection!r}: {difference}"
        raise InvalidInput(message, field=field_name)
    return Origin(gradients.space, gradients.kind, gradients.checkpoint)


def _real_array(values: Any, name: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"{name} is an array of {array.dtype}, not of real numbers")
    return array


def _check_length(name: str, length: int, keys: Sequence[Key]) -> None:
    if length != len(keys):
        raise InvalidInput(f"{name} has {length} rows for {len(keys)} keys; it needs one a key", field=name)


def _check_finite(gradients: npt.NDArray[Any], keys: Sequence[Key]) -> None:
    """Raises InvalidInput naming the key of the first row that float32 cannot hold; looks at a slice at a time."""
    step = max(1, _SLICE_ELEMENTS // max(1, gradients.shape[1]))
    for start in range(0, len(gradients), step):
        part = gradients[start : start + step]
        with np.errstate(over="ignore"):
            fine = np.isfinite(part if part.dtype.itemsize <= 4 else part.astype(np.float32)).all(axis=1)
        if not fine.all():
            row = start + int(np.flatnonzero(~fine)[0])
            finite = np.isfinite(gradients[row]).all()
            what = "a number past the range of float32" if finite else "NaN or infinity"
            raise InvalidInput(f"the gradient of key {keys[row]!r} (row {row}) holds {what}", key=keys[row], row=row)


def _encoded_texts(texts: Sequence[str | None] | None, keys: Sequence[Key]) -> Packed:
    if texts is None:
        return absent(len(keys))
    if isinstance(texts, str):
        raise InvalidInput("texts is a list with one string (or None) a row, not one string", field="texts")
    _check_length("texts", len(texts), keys)
    try:
        return pack_texts(texts)  # type: ignore[arg-type]  # anything but strings ends in the other branch
    except (TypeError, UnicodeEncodeError):
        return pack([None if text is None else _encoded_text(text, key) for text, key in zip(texts, keys, strict=True)])


def _encoded_text(text: object, key: Key) -> bytes:
    if not isinstance(text, str):
        raise InvalidInput(f"the text of key {key!r} is {type(text).__name__}, not a string or None", key=key)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the text of key {key!r} is not valid Unicode: {error.reason}", key=key) from error


def _encoded_metadata(metadata: Sequence[Metadata | None] | None, keys: Sequence[Key]) -> Packed:
    if metadata is None:
        return absent(len(keys))
    if isinstance(metadata, Mapping):
        raise InvalidInput("metadata is a list with one flat dict (or None) a row, not one dict", field="metadata")
    _check_length("metadata", len(metadata), keys)
    at_once = _encoded_at_once(metadata)
    if at_once is not None:
        return pack(at_once)
    return pack([None if row is None else _encoded_fields(row, key) for row, key in zip(metadata, keys, strict=True)])


def _encoded_at_once(metadata: Sequence[Metadata | None]) -> list[bytes | None] | None:
    """The rows' JSON by one call of the encoder, cut between one object and the next; None if that cannot be done: a
    row needs a closer look, or a string hides what looks like a cut."""
    rows = [row for row in metadata if row is not None]
    if not all(map(_is_plain, rows)):
        return None
    try:
        pieces = _FIELDS.encode(rows).encode()[2:-2].split(b"},{")  # without the first [{ and the last }]
    except ValueError:  # a number that is not finite, or half of a surrogate pair
        return None
    if len(pieces) != len(rows):
        return [None] * len(metadata) if not rows else None
    encoded = iter(pieces)
    return [None if row is None else b"{" + next(encoded) + b"}" for row in metadata]


def _is_plain(fields: object) -> bool:
    """Whether the encoder takes these fields as they are, and none has an object inside."""
    if type(fields) is not dict:
        return False
    return _PLAIN_TYPES.issuperset(map(type, fields.values())) and {str}.issuperset(map(type, fields))


def _encoded_fields(fields: object, key: Key) -> bytes:
    if not isinstance(fields, Mapping):
        raise InvalidInput(f"the metadata of key {key!r} is {type(fields).__name__}, not a dict or None", key=key)
    plain = {_field_name(name, key): _field_value(name, value, key) for name, value in fields.items()}
    try:
        return _FIELDS.encode(plain).encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the metadata of key {key!r} is not valid Unicode: {error.reason}", key=key) from error


def _field_name(name: object, key: Key) -> str:
    if not isinstance(name, str):
        raise InvalidInput(f"the metadata of key {key!r} has the field {name!r}; field names are strings", key=key)
    return name


def _field_value(name: object, value: object, key: Key) -> str | int | float | bool | None:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        raise InvalidInput(
            f"metadata field {name!r} of key {key!r} is {plain}; use None for unknown", key=key, field=name
        )
    if plain is None or isinstance(plain, str | int | float):
        return plain
    raise InvalidInput(
        f"metadata field {name!r} of key {key!r} is {type(value).__name__}; "
        "metadata is flat: strings, numbers, booleans and None",
        key=key,
        field=name,
    )


def _checked_trak_q(trak_q: npt.ArrayLike, keys: Sequence[Key]) -> npt.NDArray[np.float32]:
    array = _real_array(trak_q, "trak_q")
    if array.ndim != 1:
        raise InvalidInput(f"trak_q has shape {list(array.shape)}; it is one number a row", field="trak_q")
    _check_length("trak_q", len(array), keys)
    bad = np.flatnonzero((array < 0) | (array > 1))
    if len(bad):
        key = keys[bad[0]]
        raise InvalidInput(f"trak_q of key {key!r} is {array[bad[0]]}; it is 1 - p, so between 0 and 1", key=key)
    return array.astype("<f4")


def row_chunks(encoded: Sequence[bytes], *, rows_max: int, bytes_max: int) -> Iterable[slice]:
    """Cuts keys into runs of at most ``rows_max`` keys and about ``bytes_max`` bytes, in order."""
    start, size = 0, 0
    for row, key in enumerate(encoded):
        size += len(key) + 4
        if row > start and (row - start >= rows_max or size > bytes_max):
            yield slice(start, row)
            start, size = row, len(key) + 4
    if start < len(encoded):
        yield slice(start, len(encoded))
