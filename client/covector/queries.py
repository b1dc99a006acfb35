"""What a query asks, from the arguments of ``Collection.query`` and ``scores`` to messages."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from covector.blocks import Column, column_to_message, key_column
from covector.errors import InvalidInput
from covector.inputs import GradientRows, Keys, Origin, origin_of, plain_keys, query_array
from covector.messages import filter_json, kind_to_message, space_to_message
from covector.types import FitInfo, GradientKind, Gradients, Space
from covector.v1 import query_pb2, types_pb2

Queries = GradientRows | Mapping[str, GradientRows]
Checkpoints = str | Sequence[str] | None
Reduce = Literal["mean", "max"]
Missing = Literal["omit", "zero"]
Damaged = Literal["error", "omit"]

_REDUCE: dict[str | None, query_pb2.Reduce] = {
    None: query_pb2.REDUCE_UNSPECIFIED,
    "mean": query_pb2.REDUCE_MEAN,
    "max": query_pb2.REDUCE_MAX,
}
_MISSING: dict[str, query_pb2.MissingRows] = {
    "omit": query_pb2.MISSING_ROWS_OMIT,
    "zero": query_pb2.MISSING_ROWS_ZERO,
}
_DAMAGED: dict[str, query_pb2.DamagedRows] = {
    "error": query_pb2.DAMAGED_ROWS_FAIL,
    "omit": query_pb2.DAMAGED_ROWS_OMIT,
}
_PART_BYTES = 1 << 20
_ONCE_BYTES = 1 << 20  # of the vectors of a query in one message
_ONCE_HITS = 1024  # of an answer in one message


@dataclass(frozen=True, slots=True)
class Asking:
    """Query vectors and where they come from. ``vectors``: float32[m, dim] for each of ``checkpoints``, or one array
    and no checkpoint named: the collection's only one. Or ``stored``: the keys of rows that are the queries."""

    checkpoints: tuple[str, ...]
    vectors: tuple[npt.NDArray[np.float32], ...] = ()
    origins: tuple[Origin, ...] = ()
    stored: Column | None = None

    @property
    def query_count(self) -> int:
        """Queries per checkpoint."""
        return len(self.vectors[0]) if self.stored is None else len(self.stored)

    @property
    def size_bytes(self) -> int:
        """Of the vectors as they are sent."""
        return sum(array.size for array in self.vectors) * 4

    def whole(self) -> bytes:
        """What ``parts`` gives, in one piece."""
        return b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in self.vectors)

    def parts(self) -> Iterator[query_pb2.VectorPart]:
        """The vectors as float32 [checkpoints, query_count, dim], in messages of at most a MiB."""
        for array in self.vectors:
            data = np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data
            for start in range(0, len(data), _PART_BYTES):
                yield query_pb2.VectorPart(data=bytes(data[start : start + _PART_BYTES]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How queries become scores, and which rows are asked about; checked when made."""

    scorer: str | FitInfo = "dot"
    where: Mapping[str, Any] | None = None
    exact: bool = False
    groups: Sequence[Hashable] | None = None
    reduce: Reduce | None = None
    missing: Missing = "omit"
    damaged: Damaged = "error"

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, str | FitInfo):
            raise InvalidInput(
                f"scorer is the name of a scorer, such as 'dot', or a fit, not {self.scorer!r}", field="scorer"
            )
        if self.reduce not in _REDUCE:
            words = ", ".join(map(repr, get_args(Reduce)))
            raise InvalidInput(f"reduce is None or one of {words}, not {self.reduce!r}", field="reduce")
        if self.missing not in _MISSING:
            words = ", ".join(map(repr, get_args(Missing)))
            raise InvalidInput(f"missing is one of {words}, not {self.missing!r}", field="missing")
        if self.damaged not in _DAMAGED:
            words = ", ".join(map(repr, get_args(Damaged)))
            raise InvalidInput(f"damaged is one of {words}, not {self.damaged!r}", field="damaged")

    @property
    def scorer_name(self) -> str:
        """The scorer as it is sent: its name, or the id of a fit."""
        return self.scorer.id if isinstance(self.scorer, FitInfo) else self.scorer

    def group_numbers(self, query_count: int) -> list[int]:
        """The group of each query, numbered in order of first appearance; empty if there are no groups."""
        if self.groups is None:
            return []
        labels = [label.item() if isinstance(label, np.generic) else label for label in self.groups]
        if len(labels) != query_count:
            raise InvalidInput(f"groups has {len(labels)} labels for {query_count} queries", field="groups")
        numbers: dict[Hashable, int] = {}
        return [numbers.setdefault(label, len(numbers)) for label in labels]

    def result_count(self, query_count: int) -> int:
        """How many results come out."""
        if self.reduce is not None:
            return 1
        return query_count if self.groups is None else len(set(self.group_numbers(query_count)))


def asking(queries: Queries, checkpoints: Checkpoints, space: Space, collection: str) -> Asking:
    """Brings queries into one form. Raises InvalidInput for vectors that are not finite, of another dim or space, or
    not as many at each checkpoint."""
    names = None if checkpoints is None else checkpoint_names(checkpoints)
    if isinstance(queries, Mapping):
        return _asking_each(queries, names, space, collection)
    if names is not None and len(names) > 1:
        example = ", ".join(f"{name!r}: ..." for name in names[:2])
        raise InvalidInput(f"one array for {len(names)} checkpoints: give each its own queries: {{{example}}}")
    vectors = query_array(queries, space.dim)
    return Asking(tuple(names or ()), (vectors,), (origin_of(queries, space, collection),))


def asking_stored(keys: Keys, checkpoints: Checkpoints) -> Asking:
    """Stored rows as queries. Raises InvalidInput for none, or for what is no key."""
    column = key_column(plain_keys(keys))
    if not len(column):
        raise InvalidInput("no keys are given; name at least one stored row", field="keys")
    return Asking(() if checkpoints is None else tuple(checkpoint_names(checkpoints)), stored=column)


def self_spec(collection: str, checkpoints: Checkpoints, rules: Rules) -> query_pb2.QuerySpec:
    """The message that asks what every row scores for itself."""
    names = () if checkpoints is None else tuple(checkpoint_names(checkpoints))
    message = spec(collection, Asking(names, (np.empty((0, 0), dtype=np.float32),)), rules)
    message.self_influence = True
    return message


def spec(collection: str, asked: Asking, rules: Rules) -> query_pb2.QuerySpec:
    """The message that says what is asked."""
    kind = GradientKind()
    for origin in asked.origins:
        difference = kind.difference(origin.kind)
        if difference is not None:
            raise InvalidInput(f"the queries at different checkpoints are of different kinds: {difference}")
        kind = kind.filled_from(origin.kind)
    space = next((origin.space for origin in asked.origins if origin.space is not None), None)
    return query_pb2.QuerySpec(
        collection=collection,
        checkpoints=[
            query_pb2.CheckpointQuery(name=name, weights_digest=None if origin is None else origin.weights_digest)
            for name, origin in itertools.zip_longest(asked.checkpoints, asked.origins[: len(asked.checkpoints)])
        ],
        query_count=asked.query_count if asked.stored is None else 0,
        stored_keys=None if asked.stored is None else types_pb2.KeyColumn(values=column_to_message(asked.stored)),
        scorer=rules.scorer_name,
        where_json=filter_json(rules.where),
        groups=rules.group_numbers(asked.query_count),
        reduce=_REDUCE[rules.reduce],
        missing=_MISSING[rules.missing],
        space=None if space is None else space_to_message(space),
        kind=kind_to_message(kind),
        exact=rules.exact,
        damaged=_DAMAGED[rules.damaged],
    )


def fits_once(top: query_pb2.TopKSpec, asked: Asking, result_count: int) -> bool:
    """Whether question and answer are likely to fit into a message each."""
    hit_count = 2 * top.k * result_count
    return not top.group_by and asked.size_bytes <= _ONCE_BYTES and hit_count <= _ONCE_HITS


def checked_offset(offset: int) -> int:
    """``offset`` as an integer of at least 0. Raises InvalidInput for anything else."""
    if isinstance(offset, bool) or not isinstance(offset, int | np.integer) or offset < 0:
        raise InvalidInput(f"offset is an integer of at least 0, not {offset!r}", field="offset")
    return int(offset)


def checked_field(group_by: str | None) -> str:
    """The name of a field to group by, empty for none. Raises InvalidInput for anything else."""
    if group_by is not None and (not isinstance(group_by, str) or not group_by):
        raise InvalidInput(f"group_by is the name of a metadata field, not {group_by!r}", field="group_by")
    return group_by or ""


def checked_k(k: int) -> int:
    """``k`` as an integer of at least 1. Raises InvalidInput for anything else."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInput(f"k is an integer of at least 1, not {k!r}", field="k")
    return int(k)


def _asking_each(queries: Mapping[str, GradientRows], names: list[str] | None, space: Space, collection: str) -> Asking:
    given = checkpoint_names(list(queries))
    if names is not None and set(names) != set(given):
        raise InvalidInput(f"checkpoints names {names}, the queries are for {given}; leave checkpoints out")
    order = names or given
    vectors = tuple(query_array(queries[name], space.dim, f"queries[{name!r}]") for name in order)
    counts = {name: len(array) for name, array in zip(order, vectors, strict=True)}
    if len(set(counts.values())) > 1:
        raise InvalidInput(f"as many queries are needed at each checkpoint, these are {counts}")
    return Asking(tuple(order), vectors, tuple(origin_of(queries[name], space, collection) for name in order))


def checkpoint_names(checkpoints: str | Sequence[str]) -> list[str]:
    """The names as a list. Raises InvalidInput for none, for one twice, and for what is no name."""
    names = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if not names:
        raise InvalidInput("no checkpoint is named; leave checkpoints out to ask the collection's only one")
    if not all(isinstance(name, str) and name for name in names):
        raise InvalidInput(f"checkpoints are names of checkpoints, not {names!r}")
    if len(set(names)) < len(names):
        raise InvalidInput(f"a checkpoint is named twice in {names}")
    return names


def states_weights(queries: Queries) -> bool:
    """Whether bare ``queries`` carry a weights digest that should be held against the checkpoint's."""
    return isinstance(queries, Gradients) and queries.checkpoint is not None
