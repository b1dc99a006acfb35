"""A collection: rows in, questions answered."""

from __future__ import annotations

import json
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from covector import fitting
from covector import queries as asking
from covector.connection import Connection
from covector.errors import InvalidInput
from covector.fitting import FitOperation
from covector.inputs import Keys, Origin, given_rows
from covector.messages import checkpoint_from_message, filter_json, index_from_message
from covector.operation import Operation
from covector.queries import Asking, Checkpoints, Damaged, Missing, Queries, Reduce, Rules
from covector.results import Scores, read_result, read_whole
from covector.row_stream import OnConflict, RowStream, StreamOptions
from covector.rows import checked_checkpoint, delete_rows, get_rows, missing_keys
from covector.types import CheckpointInfo, FitInfo, IndexInfo, Key, Metadata, QueryResult, Row, Space
from covector.v1 import collections_pb2, fits_pb2, indexes_pb2, query_pb2, rows_pb2
from covector.writer import Writer


class Collection:
    """A named set of rows whose gradients live in one space. Made by ``Client``; holds no state; thread-safe."""

    def __init__(self, connection: Connection, message: collections_pb2.Collection) -> None:
        self._connection = connection
        self._name = message.name
        self._space = Space.from_json(message.space.json)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def space(self) -> Space:
        """What its coordinates mean."""
        return self._space

    def writer(
        self,
        checkpoint: str,
        *,
        eta: float = 1.0,
        on_conflict: OnConflict = "error",
        progress: bool = False,
        retry_s: float = 60.0,
    ) -> Writer:
        """A writer to a checkpoint, which is made by the first row; use it in a ``with`` block.

        eta: the checkpoint's weight in sums, usually the learning rate; Conflict if it stands with another.
        on_conflict: what to do with a key that stands with other content: ``error`` refuses it, ``ignore`` keeps what
        is stored, ``replace`` stores the new gradient. progress: a bar on stderr. retry_s: for how long a broken
        connection is tried again without progress.
        """
        return Writer(
            self._connection,
            self._name,
            self._space,
            checkpoint,
            eta=eta,
            on_conflict=on_conflict,
            progress=progress,
            retry_s=retry_s,
        )

    def add_rows(
        self,
        keys: Keys,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
    ) -> int:
        """Stores rows without gradients, and returns how many are durably stored, those included that stood already.

        A key that stands must stand with the same text and metadata; else Conflict.
        """
        stream = RowStream(self._connection, StreamOptions(collection=self._name, checkpoint=None))
        try:
            stream.add(given_rows(keys, texts, metadata), Origin())
        except BaseException:
            stream.abort()
            raise
        stream.close()
        return stream.acknowledged_row_count

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many rows there are, with or without gradients; with a filter, how many match."""
        request = rows_pb2.CountRowsRequest(collection=self._name, where_json=filter_json(where))
        return int(self._connection.call(self._connection.rows.CountRows, request).row_count)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Its checkpoints in the order they were made."""
        request = collections_pb2.ListCheckpointsRequest(collection=self._name)
        pages = self._connection.pages(self._connection.collections.ListCheckpoints, request)
        return [checkpoint_from_message(message) for page in pages for message in page.checkpoints]

    def missing(self, keys: Keys, *, checkpoint: str) -> list[Key]:
        """Which of the keys have no gradient at the checkpoint yet, in their order: what a resumed job has to do."""
        return missing_keys(self._connection, self._name, keys, checked_checkpoint(checkpoint))

    def get(self, keys: Keys, *, gradients: bool = False, checkpoint: str | None = None) -> list[Row]:
        """Rows by key, in the order asked for; NotFound names the first unknown key.

        gradients: also the gradient, float32[dim], at the checkpoint (which may be left out if there is only one);
        None for a row that has none there.
        """
        name = None if checkpoint is None else checked_checkpoint(checkpoint)
        return get_rows(self._connection, self._name, keys, self._space.dim, gradients=gradients, checkpoint=name)

    def query(
        self,
        queries: Queries | None = None,
        k: int = 10,
        *,
        keys: Keys | None = None,
        scorer: str | FitInfo = "dot",
        checkpoints: Checkpoints = None,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        groups: Sequence[Hashable] | None = None,
        reduce: Reduce | None = None,
        missing: Missing = "omit",
        damaged: Damaged = "error",
        offset: int = 0,
        group_by: str | None = None,
    ) -> QueryResult:
        """The k rows with the largest scores (proponents) and the k with the smallest (opponents). Where fewer than 2k
        rows match, the two overlap: the sign says which way a row pushed.

        queries: float[dim], float[m, dim] or Gradients; for several checkpoints a dict {checkpoint: queries}, whose
        scores are summed by the checkpoints' eta. keys: in their place, stored rows whose gradients are the queries
        ("rows like this one"; each finds itself too). checkpoints: needed if the collection has several. where: a
        filter on metadata. exact: use no index. groups: a label for each query; the queries of a group are averaged.
        reduce: make one result of the groups, by ``mean`` or ``max``. missing: whether a row without a gradient at one
        of the checkpoints is left out (``omit``) or counts as ``zero`` there. damaged: whether stored bytes that do not
        match their checksum are an ``error`` (Corrupt, naming them), or ``omit`` leaves their rows out and ``damages``
        of the result says which. offset: leave out so many of the best at each end: the next page. group_by: a metadata
        field: k rows at each end of each of its values, and what the rows of each score together, in ``groups`` of the
        result. Raises InvalidInput for vectors of another space, kind or weights than the stored ones.
        """
        rules = Rules(
            scorer=scorer, where=where, exact=exact, groups=groups, reduce=reduce, missing=missing, damaged=damaged
        )
        asked = self._asked(queries, keys, checkpoints)
        spec = query_pb2.TopKSpec(
            query=asking.spec(self._name, asked, rules),
            k=asking.checked_k(k),
            offset=asking.checked_offset(offset),
            group_by=asking.checked_field(group_by),
        )
        if asking.fits_once(spec, asked, rules.result_count(asked.query_count)):
            request = query_pb2.QueryOnceRequest(spec=spec, vectors=asked.whole())
            response = self._connection.call(self._connection.query.QueryOnce, request)
            if not response.too_large:
                return read_whole(response)
        requests = _requests(query_pb2.QueryRequest, spec, asked)
        return read_result(self._connection.stream(self._connection.query.Query, requests))

    def scores(
        self,
        queries: Queries | None = None,
        *,
        keys: Keys | None = None,
        scorer: str | FitInfo = "dot",
        checkpoints: Checkpoints = None,
        where: Mapping[str, Any] | None = None,
        groups: Sequence[Hashable] | None = None,
        reduce: Reduce | None = None,
        missing: Missing = "omit",
        damaged: Damaged = "error",
    ) -> Scores:
        """The scores of every row, streamed while they are read; the arguments are those of ``query``."""
        rules = Rules(scorer=scorer, where=where, groups=groups, reduce=reduce, missing=missing, damaged=damaged)
        asked = self._asked(queries, keys, checkpoints)
        spec = asking.spec(self._name, asked, rules)
        method = self._connection.query.Scores
        return Scores(
            lambda: self._connection.stream(method, _requests(query_pb2.ScoresRequest, spec, asked)),
            rules.result_count(asked.query_count),
        )

    def self_influence(
        self,
        *,
        scorer: str | FitInfo = "dot",
        checkpoints: Checkpoints = None,
        where: Mapping[str, Any] | None = None,
        missing: Missing = "omit",
        damaged: Damaged = "error",
    ) -> Scores:
        """What every row scores as its own query: float32[1, n] blocks. Rows far above the others are often mislabelled
        or rare (Pruthi et al. 2020, section 4.1). Several checkpoints are summed by their eta; ``checkpoints`` names
        them where there are several. The other arguments are those of ``query``."""
        rules = Rules(scorer=scorer, where=where, missing=missing, damaged=damaged)
        spec = asking.self_spec(self._name, checkpoints, rules)
        method = self._connection.query.Scores
        return Scores(
            lambda: self._connection.stream(method, iter([query_pb2.ScoresRequest(spec=spec)])),
            1,
        )

    def delete(self, keys: Keys | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Deletes rows by key or by a filter, at all checkpoints, and returns how many there were.

        keys: one that is unknown, or deleted already, is passed over; very many go in several requests, of which those
        before a failure stand. where: a filter on metadata; ``{}`` is every row. Exactly one of the two is given.
        No read sees the rows any more; ``compact`` takes their bytes out of the files.
        """
        return delete_rows(self._connection, self._name, keys, where)

    def deleted_count(self) -> int:
        """How many rows are deleted and still have bytes in files: ``compact`` takes them out."""
        request = collections_pb2.GetCollectionRequest(name=self._name)
        response = self._connection.call(self._connection.collections.GetCollection, request)
        return int(response.collection.deleted_row_count)

    def compact(self) -> Operation:
        """Starts to take the bytes of deleted and replaced rows out of the files; ingest and queries go on.

        Its result says which snapshots still hold deleted rows.
        """
        request = collections_pb2.CompactCollectionRequest(collection=self._name, request_id=str(uuid.uuid4()))
        response = self._connection.call(self._connection.collections.CompactCollection, request)
        return Operation(self._connection, response.operation)

    def build_index(
        self,
        kind: str = "subspace",
        *,
        scorer: str | FitInfo = "dot",
        checkpoint: str | None = None,
        recall: float | None = None,
        **parameters: Any,
    ) -> Operation:
        """Starts to build an index, which queries then use by themselves where it costs less than exact search. It
        takes the place of the index of its kind, checkpoint, fit and scorers, which serves until then.

        scorer: what its recall is measured for, on rows of the collection asked as queries; for one that learns, such
        as ``trak``, its newest fit or the fit that is given, whose queries alone it serves, and with which it goes.
        checkpoint: may be left out if there is only one. A query of several checkpoints is answered by a ``subspace``
        index of each. recall: what it should reach, such as 0.99; the result's ``warning`` says if it does not.
        kind: ``subspace``, ``scann`` or ``annoy``; the last two need their library where the store is (extras of these
        names). parameters: of the kind, instead of its own choice: ``rank`` of the codes, ``trees`` of an ``annoy``.
        """
        request = indexes_pb2.BuildIndexRequest(
            collection=self._name,
            kind=kind,
            checkpoint="" if checkpoint is None else checked_checkpoint(checkpoint),
            scorer=scorer.id if isinstance(scorer, FitInfo) else scorer,
            recall=_checked_recall(recall),
            parameters_json=json.dumps(parameters) if parameters else "",
            request_id=str(uuid.uuid4()),
        )
        response = self._connection.call(self._connection.indexes.BuildIndex, request)
        return Operation(self._connection, response.operation)

    def indexes(self) -> list[IndexInfo]:
        """Its indexes, oldest first, with the recall that was measured."""
        request = indexes_pb2.ListIndexesRequest(collection=self._name)
        pages = self._connection.pages(self._connection.indexes.ListIndexes, request)
        return [index_from_message(message) for page in pages for message in page.indexes]

    def drop_index(self, id: str) -> None:  # noqa: A002 - what everybody calls it
        """Drops an index; rows are not touched. Raises NotFound."""
        request = indexes_pb2.DropIndexRequest(collection=self._name, id=id)
        self._connection.call(self._connection.indexes.DropIndex, request)

    def fit(
        self,
        method: str,
        *,
        checkpoints: Checkpoints = None,
        damping: float | str | Sequence[float] | None = None,
        rank: int | None = None,
        task_gradients: Queries | None = None,
        **options: Any,
    ) -> FitOperation:
        """Starts to learn what a scorer needs from the stored rows; ``wait`` returns the fit. The same again goes on
        where it was cut off, or follows the rows that came since.

        method: ``trak``, ``influence``, ``datainf``, ``trackstar`` or ``less``. checkpoints: None for all. damping: in
        the method's unit, for most the mean nonzero eigenvalue; 0 for none, None for the method's default; several, or
        ``"held_out"`` for a decade around the default, are candidates among which rows held out of the moments choose:
        ``damping`` and ``damping_scores`` of the fit say what (``covector evaluate`` chooses by retrained models, a
        better judge). rank: of a low-rank fit, None for a dense one as far as dim and memory allow. task_gradients: the
        query task's, for trackstar; for several checkpoints a dict. options: ``by_layer`` (False: all coordinates as
        one layer, which datainf has to be told where the space has no blocks), ``unit_rows``, ``range_passes``,
        ``task_share``, as ``covector.attribution.fit`` takes them.
        """
        chosen = fitting.options_of(damping=damping, rank=rank, **options)
        spec = fitting.fit_spec(self._name, method, checkpoints, chosen)
        return fitting.start_fit(self._connection, self._name, self._space, spec, task_gradients)

    def fits(self) -> list[FitInfo]:
        """Its fits, oldest first, those on their way included."""
        return fitting.list_fits(self._connection, self._name)

    def drop_fit(self, id: str) -> None:  # noqa: A002 - what everybody calls it
        """Drops a fit, and the indexes built for it; rows are not touched. Raises NotFound."""
        request = fits_pb2.DropFitRequest(collection=self._name, id=id)
        self._connection.call(self._connection.fits.DropFit, request)

    def publish(self) -> Operation:
        """Starts to make every stored row, the partial last shard included, readable by Zarr tools."""
        request = collections_pb2.PublishCollectionRequest(collection=self._name, request_id=str(uuid.uuid4()))
        response = self._connection.call(self._connection.collections.PublishCollection, request)
        return Operation(self._connection, response.operation)

    def __repr__(self) -> str:
        return f"Collection({self._name!r}, dim={self._space.dim})"

    def _asked(self, queries: Queries | None, keys: Keys | None, checkpoints: Checkpoints) -> Asking:
        """The queries, vectors or stored rows, in one form. Names the only checkpoint where the queries state weights,
        so that the server can compare."""
        if keys is not None and queries is not None:
            raise InvalidInput("queries and keys were both given; give vectors, or keys of stored rows", field="keys")
        if keys is not None:
            return asking.asking_stored(keys, checkpoints)
        if queries is None:
            raise InvalidInput("nothing is asked: give queries, or keys=[...] of stored rows", field="queries")
        if checkpoints is None and asking.states_weights(queries):
            names = [checkpoint.name for checkpoint in self.checkpoints()]
            checkpoints = names if len(names) == 1 else None
        return asking.asking(queries, checkpoints, self._space, self._name)


def _checked_recall(recall: float | None) -> float:
    """The recall as it is sent, 0 for none."""
    if recall is not None and not 0 < recall < 1:
        raise InvalidInput(f"recall is a share above 0 and below 1, such as 0.99, not {recall!r}", field="recall")
    return recall or 0.0


def _requests(request: Any, spec: Any, asked: Asking) -> Iterator[Any]:
    yield request(spec=spec)
    for part in asked.parts():
        yield request(vectors=part)
