"""The background step that indexes metadata: one range of rows at a time, registered on the thread that writes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from covector.errors import CovectorError
from covector_server.ingest.committer import Committer
from covector_server.jobs.postings_plan import Pace, Piece, next_piece, reaches_end
from covector_server.limits import Limits
from covector_server.metadata.catalog import number
from covector_server.metadata.records import PostingsRecord
from covector_server.storage.collection import StoredCollection, StoredCollectionView
from covector_server.storage.postings_files import build, register
from covector_server.storage.store import Store

_PAUSE_STEPS_MAX = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Look:
    """What a collection was like when it was last looked at."""

    row_id_count: int
    supplement_count: int
    sound_files: tuple[int, ...]


@dataclass(slots=True)
class _Pause:
    """How many steps a collection is left alone after a failure; twice as many after the next."""

    step_count: int = 1
    left: int = 1

    def again(self) -> None:
        self.step_count = self.left = min(2 * self.step_count, _PAUSE_STEPS_MAX)


class PostingsIndexer:
    """Keeps the postings of all collections up to date, a bounded piece of work a call. For one thread, which ends
    before the committer does."""

    def __init__(self, store: Store, committer: Committer, limits: Limits) -> None:
        self._store = store
        self._committer = committer
        self._limits = limits
        self._looks: dict[int, _Look] = {}
        self._settled: set[int] = set()  # collections in which nothing is to be done until they look different
        self._pauses: dict[int, _Pause] = {}

    def step(self) -> bool:
        """Indexes one range of one collection, and says whether there was one to index: then call it again soon, else
        later. How much came between two calls tells it how busy a collection is. A failure is logged, and tried again
        after ever more steps."""
        return any(self._step(collection) for collection in self._store.collections())

    def _step(self, collection: StoredCollection) -> bool:
        if not self._is_due(collection):
            return False
        forgotten_count = collection.postings.forgotten_count  # before the view, which may still show what is forgotten
        try:
            with collection.reading() as view:
                piece = self._next_piece(collection, view)
                if piece is not None:
                    self._index(collection, view, piece, forgotten_count)
            self._pauses.pop(collection.record.id, None)
        except (CovectorError, OSError):
            self._pauses.setdefault(collection.record.id, _Pause()).again()
            _log.exception(
                "collection %r could not be indexed; its rows are filtered one by one", collection.record.name
            )
            return False
        return piece is not None

    def _is_due(self, collection: StoredCollection) -> bool:
        if collection.fault is not None or collection.read_only is not None or not collection.fields:
            return False
        pause = self._pauses.get(collection.record.id)
        if pause is None or pause.left == 0:
            return True
        pause.left -= 1
        return False

    def _next_piece(self, collection: StoredCollection, view: StoredCollectionView) -> Piece | None:
        id_, files = collection.record.id, view.postings_files
        sound = tuple(file.number for file in files if not file.is_damaged)
        look, old = _Look(view.row_id_count, view.supplement_count, sound), self._looks.get(id_)
        if old is None:
            collection.postings.remove_orphans()
            old = _Look(0, 0, ())
        if look == old and id_ in self._settled:
            return None
        self._looks[id_] = look
        self._settled.discard(id_)
        pace = Pace.of(look.row_id_count - old.row_id_count, look.supplement_count - old.supplement_count)
        piece = next_piece(files, view.row_id_count, view.supplements, pace)
        if piece is None and pace.is_still:
            self._settled.add(id_)
        return piece

    def _index(
        self, collection: StoredCollection, view: StoredCollectionView, piece: Piece, forgotten_count: int
    ) -> None:
        files = collection.postings
        file_number = files.next_number()
        data, was_cut = build(view, piece.first, piece.row_count, self._limits.postings_build_bytes)
        record = files.write(file_number, data, was_cut or reaches_end(piece.first, piece.row_count))

        def is_listed() -> bool:
            return files.forgotten_count == forgotten_count and self._list(collection, file_number, record, piece)

        if self._committer.call(is_listed).result():
            self._store.pins.when_unpinned(lambda: files.remove(piece.replaced))
        else:
            files.remove((file_number,))

    def _list(self, collection: StoredCollection, file_number: int, record: PostingsRecord, piece: Piece) -> bool:
        """On the thread that writes: lists the file, unless the collection is gone."""
        id_ = collection.record.id
        with self._store.catalog.write() as writer:
            if writer.get("collections", number(id_)) is None:
                return False
            register(writer, id_, file_number, record, piece.replaced)
        self._store.disk.step("postings.listed")
        with collection.changing:
            collection.postings.install(file_number, record, piece.replaced)
        return True
