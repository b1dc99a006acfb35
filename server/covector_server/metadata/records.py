"""What the catalog says, as values: the records of collections, checkpoints, writers, blocks and operations.

Records are JSON, so that a store can be read without this program; a field that is not there has its default, so that
an older store opens. What changes with every commit stands apart from what never does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from covector.types import GradientKind

FORMAT_VERSION = 2
OVERSAMPLING_USUAL = 10


class Record:
    """A frozen dataclass that travels as a JSON object."""

    def encode(self) -> bytes:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()  # type: ignore[call-overload]

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """The record in ``value``."""
        return cls(**json.loads(value))


@dataclass(frozen=True, slots=True)
class StoreRecord(Record):
    """The store itself: its format, and the next collection's id."""

    format_version: int = FORMAT_VERSION
    next_collection_id: int = 1


@dataclass(frozen=True, slots=True)
class CollectionRecord(Record):
    """A collection, as made."""

    id: int
    name: str
    space_json: str


@dataclass(frozen=True, slots=True)
class CollectionCounters(Record):
    """Where the next row goes: its id, and the end of the row log."""

    next_row_id: int = 0
    next_checkpoint_id: int = 1
    next_supplement: int = 0
    log_file: int = 0
    log_offset_bytes: int = 0

    def after_block(self, last: int, log_file: int, log_offset_bytes: int) -> CollectionCounters:
        """The counters behind a block of the row log that speaks of rows up to ``last``. A call a batch: spelt out, it
        takes a sixth of what ``dataclasses.replace`` does."""
        next_row_id = max(self.next_row_id, last + 1)
        return CollectionCounters(
            next_row_id, self.next_checkpoint_id, self.next_supplement, log_file, log_offset_bytes
        )


@dataclass(frozen=True, slots=True)
class CheckpointRecord(Record):
    """A checkpoint, as made. Its arrays lie in ``collections/<collection>/<id>/<generation>``."""

    id: int
    name: str
    eta: float
    weights_digest: str | None
    kind: dict[str, str | None]
    chunk_rows: int
    shard_rows: int
    generation: int = 0

    @property
    def gradient_kind(self) -> GradientKind:
        """How its rows' gradients were taken."""
        return GradientKind(**self.kind)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class CheckpointCounters(Record):
    """How far the arrays are written. ``checksums``: by array, CRC-32C of the rows of its last, partial chunk."""

    row_count: int = 0
    zero_row_count: int = 0
    sealed_shard_count: int = 0
    checksums: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WriterRecord(Record):
    """A writer's high-water mark: the last batch stored, and what was answered."""

    sequence: int
    digest: str
    stored_row_count: int
    duplicate_row_count: int
    zero_row_count: int


@dataclass(frozen=True, slots=True)
class BlockRecord(Record):
    """Where a block of the row log lies. ``first``, ``last``: the smallest and the largest row id in it."""

    file: int
    offset_bytes: int
    size_bytes: int
    first: int
    last: int
    row_count: int


@dataclass(frozen=True, slots=True)
class KeyRunRecord(Record):
    """A run of the key table: it speaks for rows [first, stop)."""

    first: int
    stop: int
    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PostingsRecord(Record):
    """A file of postings: the rows it covers, how many supplements their metadata took in, whether it is as long as it
    can get, and the CRC-32C that it ends with."""

    first: int
    row_count: int
    supplement_count: int
    is_complete: bool
    size_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class IndexPart(Record):
    """What an index covers of one checkpoint: its first ``row_count`` positions in one generation, the dead ones
    included; of these, ``blank_count`` dead ones have nothing in it any more."""

    checkpoint_id: int
    generation: int
    row_count: int
    blank_count: int = 0


@dataclass(frozen=True, slots=True)
class IndexRecord(Record):
    """An approximate search structure of a collection, in the directory of that name below ``indexes/``.

    ``parts``: one a checkpoint, fields of ``IndexPart``; ``fit``: of the map A whose rows it holds, empty for none.
    ``scorers``: what it answers; ``scorer``: what its recall was measured for. ``oversampling``: candidates a hit, of
    ten that are asked for by that scorer. ``query_elements``: about how many numbers a query reads, what a plan's cost
    is made of. ``recall``: as measured on rows of the collection; ``warning``: what was asked for and not reached.
    ``files``: sizes by name; ``checksum``: CRC-32C of its manifest.
    """

    id: str
    kind: str
    directory: str
    parts: list[dict[str, int]]
    fit: str = ""
    scorers: list[str] = field(default_factory=list)
    scorer: str = "dot"
    oversampling: int = OVERSAMPLING_USUAL
    query_elements: int = 0
    recall: dict[str, float] = field(default_factory=dict)
    recall_asked: float | None = None
    warning: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    checksum: int = 0
    built_at_s: float = 0.0

    @property
    def covered(self) -> list[IndexPart]:
        """The parts, as values."""
        return [IndexPart(**part) for part in self.parts]

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(self.files.values())

    def oversampling_of(self, scorer: str) -> int:
        """Candidates a hit: as measured, and for a scorer that nothing was measured for, no fewer than is usual."""
        if self.fit or scorer == self.scorer:
            return self.oversampling
        return max(self.oversampling, OVERSAMPLING_USUAL)

    def replaces(self, other: IndexRecord) -> bool:
        """Whether it is for the same checkpoints, fit and scorers as another of its kind, and takes its place."""
        mine, others = ([part["checkpoint_id"] for part in record.parts] for record in (self, other))
        return (self.kind, mine, self.fit, self.scorers) == (other.kind, others, other.fit, other.scorers)


@dataclass(frozen=True, slots=True)
class FilesRecord(Record):
    """A directory of files that never change: sizes by name, and the CRC-32C of its manifest."""

    directory: str
    files: dict[str, int]
    checksum: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(self.files.values())


@dataclass(frozen=True, slots=True)
class FitPart(Record):
    """What a fit learnt at one checkpoint, and where it lies below ``fits/``.

    It was learnt from ``learnt_count`` rows: those of the first ``row_count`` positions of a generation that were live.
    ``blank_count``: dead positions among them whose own weights are gone from the files. ``files``: of ``FilesRecord``.
    """

    checkpoint_id: int
    checkpoint: str
    generation: int
    row_count: int
    learnt_count: int
    files: dict[str, Any]
    blank_count: int = 0

    @property
    def stored(self) -> FilesRecord:
        """Where it lies."""
        return FilesRecord(**self.files)


@dataclass(frozen=True, slots=True)
class FitRecord(Record):
    """A fit of a collection, or one on its way.

    ``parameters``: what was asked for, as JSON values; the same again is the same fit. ``parts``: fields of
    ``FitPart``, one for each checkpoint that is done. ``damping`` in units of ``damping_unit``; ``damping_scores``:
    (candidate, what the rows held out said of it), empty if they did not choose; ``rank``: None for a dense fit;
    ``notes``: what a user should know of the choices made. A fit that is not finished has the files of its ``state``,
    None before the first: where the checkpoint of id ``state_checkpoint_id`` stands.
    """

    id: str
    method: str
    parameters: dict[str, Any]
    is_finished: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] | None = None
    state_checkpoint_id: int = 0
    damping: float = 0.0
    damping_unit: str = ""
    damping_scores: list[list[float]] = field(default_factory=list)
    rank: int | None = None
    notes: list[str] = field(default_factory=list)
    started_at_s: float = 0.0
    made_at_s: float = 0.0

    @property
    def covered(self) -> list[FitPart]:
        """The parts, as values."""
        return [FitPart(**part) for part in self.parts]

    @property
    def stored(self) -> list[FilesRecord]:
        """Every directory that it has."""
        state = [] if self.state is None else [FilesRecord(**self.state)]
        return [*(part.stored for part in self.covered), *state]

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(one.size_bytes for one in self.stored)


@dataclass(frozen=True, slots=True)
class OperationRecord(Record):
    """A piece of long work, as last seen. ``metadata``: what was known of it before it began."""

    id: str
    kind: str
    collection: str
    state: str
    steps_done: int = 0
    steps_total: int = 0
    error_kind: str = ""
    error_message: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    started_at_s: float = 0.0  # since 1970; 0 in a store of format 1
    metadata: dict[str, Any] = field(default_factory=dict)
