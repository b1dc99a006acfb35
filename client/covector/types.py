"""The values that users meet: spaces, gradient kinds, gradients, hits and results. Plain, frozen, numpy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput

Key = int | str
Metadata = Mapping[str, str | int | float | bool | None]
FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64] | npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Projection:
    """How gradients become sketches. ``kind`` is ``none``, ``count_sketch`` or ``kronecker``; ``version`` is the
    generator's: another version draws other numbers from the same seed. ``dim_in`` and ``dim_out`` are kronecker's."""

    kind: str = "none"
    dim: int | None = None
    seed: int | None = None
    version: int = 1
    dim_in: int | None = None
    dim_out: int | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter tensor that was differentiated: its name in the model and its shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Coordinates [start, stop) belong to the layer ``name``, which has ``size`` parameters of its own."""

    name: str
    start: int
    stop: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What the coordinates of a collection mean.

    ``Space(dim=4096)`` is a space of bare vectors; ``GradientModel.space`` fills in the rest. Two spaces are the same
    if their canonical JSON is; ``fingerprint`` is its SHA-256.
    """

    dim: int
    architecture: str | None = None
    parameters: tuple[Parameter, ...] = ()
    projection: Projection | None = None
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise InvalidInput(f"dim must be an integer of at least 1, not {self.dim!r}")

    @property
    def json(self) -> str:
        """Canonical JSON: keys sorted, no white space."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def fingerprint(self) -> str:
        """Lower-case hex SHA-256 of ``json``."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @staticmethod
    def from_json(text: str) -> Space:
        """The space that ``text`` describes. Raises InvalidInput naming what is wrong with it."""
        try:
            raw = json.loads(text)
            projection = raw.pop("projection", None)
            return Space(
                parameters=tuple(Parameter(p["name"], tuple(p["shape"])) for p in raw.pop("parameters", ())),
                projection=None if projection is None else Projection(**projection),
                blocks=tuple(Block(**block) for block in raw.pop("blocks", ())),
                **raw,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(f"not a space: {error}") from error

    def difference(self, other: Space) -> str | None:
        """The first field in which ``other`` differs, with both values, or None if the spaces are the same."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if mine != theirs:
                return f"{item.name}: {_first_difference(mine, theirs)}"
        return None


def _first_difference(mine: object, theirs: object) -> str:
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        for index, (left, right) in enumerate(zip(mine, theirs, strict=False)):
            if left != right:
                return f"entry {index} is {left} here, {right} there"
        return f"{len(mine)} entries here, {len(theirs)} there"
    return f"{mine} here, {theirs} there"


Function = Literal["loss", "margin"]
TokenReduction = Literal["token_mean", "token_sum"]
Correction = Literal["none", "adam"]


@dataclass(frozen=True, slots=True)
class GradientKind:
    """How a gradient was taken. None means not stated, which is compatible with anything.

    ``function``: what was differentiated; ``reduction``: how tokens were combined; ``correction``: the optimiser's
    correction applied before projection.
    """

    function: Function | None = None
    reduction: TokenReduction | None = None
    correction: Correction | None = None

    def difference(self, other: GradientKind) -> str | None:
        """The first field that both state and that differs, with both values, or None."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if mine is not None and theirs is not None and mine != theirs:
                return f"{item.name}: {mine} here, {theirs} there"
        return None

    def filled_from(self, other: GradientKind) -> GradientKind:
        """This kind, with what it does not state taken from ``other``."""
        return GradientKind(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """float32[n, dim] gradients or sketches that know where they come from.

    ``checkpoint`` is the digest of the weights they were taken at (hex), or None. ``trak_q``: float32[n], TRAK's
    1 - p of each row, when ``kind.function`` is ``margin``. Behaves as an array in numpy calls and in indexing by row.
    """

    values: npt.NDArray[np.float32]
    space: Space
    kind: GradientKind = field(default_factory=GradientKind)
    checkpoint: str | None = None
    trak_q: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != self.space.dim:
            raise InvalidInput(f"gradients have shape {self.values.shape}, their space has dim {self.space.dim}")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)."""
        return self.values.shape[0], self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __getitem__(self, rows: slice | Sequence[int] | npt.NDArray[Any] | int) -> Gradients:
        """The gradients of some rows; one row stays two-dimensional."""
        picked = slice(rows, rows + 1 or None) if isinstance(rows, int | np.integer) else rows
        trak_q = None if self.trak_q is None else self.trak_q[picked]
        return Gradients(self.values[picked], self.space, self.kind, self.checkpoint, trak_q)


@dataclass(frozen=True, slots=True)
class Hit:
    """A row and its score. A score above zero means that training on the row lowered the query's loss."""

    key: Key
    score: float
    text: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a query's plan, the rows it saw and let through, and the seconds it took."""

    name: str
    rows_in: int
    rows_out: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Damage:
    """Stored bytes that do not match their checksum. ``checkpoint`` is None for keys, texts and metadata; ``path`` is
    below the server's data directory; ``row_count`` rows are touched."""

    checkpoint: str | None
    path: str
    message: str
    row_count: int


@dataclass(frozen=True, slots=True)
class GroupHits:
    """The rows of one result with one value of the field that was grouped by (None: the rows without it): how many,
    the sum of their scores, and the two ends among them."""

    value: str | int | float | bool | None
    row_count: int
    score_sum: float
    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class QueryHits:
    """The two ends of one result: ``proponents`` with the largest score first, ``opponents`` with the smallest. With
    ``group_by`` they are empty, and ``groups`` has the groups, the largest sum first."""

    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    groups: tuple[GroupHits, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The results of a query, one for each query (or group), and how they were found.

    ``index``: the id of the index used, those of several checkpoints with a + between, None for exact search;
    ``reason``: why that way, for people.
    ``fit``: the id of the fit used, None without one, and its ``damping`` in units of ``damping_unit``.
    ``damages``: what was left out under ``damaged="omit"``; with any, the answer is of the rows that are left.
    """

    hits: tuple[QueryHits, ...]
    exact: bool
    stages: tuple[Stage, ...]
    scorer: str
    index: str | None = None
    fit: str | None = None
    damages: tuple[Damage, ...] = ()
    reason: str = ""
    damping: float | None = None
    damping_unit: str = ""

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> QueryHits:
        return self.hits[index]

    def __iter__(self) -> Iterator[QueryHits]:
        return iter(self.hits)


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One training state of the model, as the server knows it. ``path`` is below the server's data directory;
    ``dead_row_count`` is of rows that were deleted or replaced and still take room: ``Collection.compact`` frees it."""

    name: str
    eta: float
    weights_digest: str | None
    kind: GradientKind
    row_count: int
    zero_row_count: int
    published_row_count: int
    path: str
    dead_row_count: int = 0


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An approximate search structure. Its recall was measured for ``recall_scorer`` on rows of the collection when it
    was built: ``recall@10``, ``recall@100``, ``bottom-10``. ``fresh_row_count``: rows that came since, which queries
    scan exactly; ``warning``: what was asked for and not reached."""

    id: str
    kind: str
    checkpoints: tuple[str, ...]
    fit: str | None
    scorers: tuple[str, ...]
    recall_scorer: str
    row_count: int
    fresh_row_count: int
    recall: dict[str, float]
    recall_asked: float | None
    warning: str
    oversampling: int
    size_bytes: int
    built_at_s: float
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FitInfo:
    """What a scorer learnt of stored rows; ``scorer=`` of a query takes it, or its ``id``.

    ``damping`` is in units of ``damping_unit``; ``damping_scores``: where rows held out chose it, each candidate and
    its score (larger is better); ``rank`` is None for a dense fit; ``notes``: what to know of the choices made.
    ``fresh_row_count``: live rows that it has not learnt from, which queries score all the same; ``lost_row_count``:
    rows that it learnt from and that were deleted or replaced since. One that is not ``finished`` was cut off or is
    being learnt: the same ``fit`` again goes on with it."""

    id: str
    method: str
    checkpoints: tuple[str, ...]
    finished: bool
    damping: float
    damping_unit: str
    rank: int | None
    notes: tuple[str, ...]
    row_count: int
    fresh_row_count: int
    lost_row_count: int
    size_bytes: int
    made_at_s: float
    parameters: dict[str, Any]
    damping_scores: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot of a whole store. ``created_at_s`` is in seconds since 1970-01-01 UTC; ``path`` is below the server's
    data directory; ``size_bytes`` includes the files that it shares with the store."""

    name: str
    created_at_s: int
    path: str
    row_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How a store is. Damage is what queries and the scrubber found since the server started.

    ``read_only_collections``: why each of them takes no rows; ``damages``: those of each collection that has some.
    ``scrub_total_bytes`` is None while unknown.
    """

    version: str
    format_version: int
    disk_free_bytes: int
    disk_low_water_bytes: int
    read_only_collections: dict[str, str]
    damages: dict[str, tuple[Damage, ...]]
    scrubbed_bytes: int
    scrub_total_bytes: int | None
    scrub_round_count: int

    @property
    def healthy(self) -> bool:
        """Whether every collection takes rows and no damage is known."""
        is_full = self.disk_free_bytes < self.disk_low_water_bytes
        return not (self.damages or self.read_only_collections or is_full)


@dataclass(frozen=True, slots=True)
class Row:
    """A stored row; ``gradient`` is float32[dim], or None if it was not asked for or there is none."""

    key: Key
    text: str | None = None
    metadata: dict[str, Any] | None = None
    gradient: npt.NDArray[np.float32] | None = None
