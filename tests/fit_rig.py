"""What the tests of fits share: a store in process with fits, and two judges: ``covector.attribution`` on the decoded
rows, and a plain derivation in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.index_rig import LIMITS, WAIT_S, IndexRig

from covector.blocks import decode_key, encode_key
from covector.types import Space
from covector_server.fit.spec import FitSpec
from covector_server.ingest.batch import WriterSpec
from covector_server.jobs.fitting import FitStatus, Fitter
from covector_server.jobs.operations import SUCCEEDED
from covector_server.metadata.records import FitRecord, OperationRecord
from covector_server.query.cancellation import never
from covector_server.query.engine import scores, top_k
from covector_server.query.fitted import with_fit
from covector_server.query.question import CheckpointChoice, Question, TopKAnswer
from covector_server.storage.disk import Disk
from covector_server.storage.store import Sizes
from covector_server.testing.batches import batch_of

MEMORY_BYTES = 1 << 32


class FitRig(IndexRig):
    """A store of one collection, ``c``, with fits. ``save_s``: between two saves of a fit on its way."""

    def __init__(
        self,
        data: Path,
        dim: int,
        *,
        disk: Disk | None = None,
        sizes: Sizes | None = None,
        save_s: float = 60.0,
        space: Space | None = None,
    ) -> None:
        self.save_s = save_s
        self.writer_count = 0
        super().__init__(data, dim, disk=disk, sizes=sizes)
        if space is not None:
            self.committer.call(lambda: self.store.create_collection("blocks", space, True)).result()

    def open(self) -> None:
        super().open()
        limits = replace(LIMITS, fit_save_s=self.save_s)
        self.fitter = Fitter(self.store, self.committer, self.operations, limits, MEMORY_BYTES, forget=self._forget)

    def _forget(self, directory: Path) -> None:
        self.cache.forget(directory)
        self.fit_cache.forget(directory)

    def write(
        self,
        keys: Sequence[int],
        gradients: np.ndarray,
        *,
        checkpoint: str = "one",
        trak_q: np.ndarray | None = None,
        collection: str = "c",
    ) -> None:
        """Stores rows; those that stand are replaced."""
        self.writer_count += 1
        spec = WriterSpec(collection, f"writer-{self.writer_count}", checkpoint, on_conflict="replace")
        self.committer.submit(spec, batch_of(1, list(keys), gradients, trak_q=trak_q)).result()

    def fit(self, method: str, *, collection: str = "c", **given: Any) -> OperationRecord:
        """The operation of a fit that has ended. The space of ``c`` has no blocks, which datainf has to be told."""
        if method == "datainf" and collection == "c":
            given.setdefault("by_layer", False)
        record = self.fitter.start(collection, FitSpec(method=method, **given))
        return self.operations.wait(record.id, WAIT_S)

    def fitted(self, method: str, **given: Any) -> str:
        """The id of a fit that was made."""
        ended = self.fit(method, **given)
        assert ended.state == SUCCEEDED, ended.error_message
        return str(ended.result["fit"])

    def fits(self) -> list[FitStatus]:
        return self.fitter.fits("c")

    def fit_record(self, fit_id: str) -> FitRecord:
        return next(one.record for one in self.fits() if one.record.id == fit_id)

    def fit_directories(self) -> list[str]:
        root = self.collection.directory / "fits"
        return sorted(path.name for path in root.iterdir()) if root.is_dir() else []

    def listed_directories(self) -> list[str]:
        return sorted(one.directory for status in self.fits() for one in status.record.stored)

    def scored(
        self, queries: np.ndarray, scorer: str, checkpoints: Sequence[str] = (), collection: str = "c", **given: Any
    ) -> dict[Any, np.ndarray]:
        """Scores by key, float64[m] each. queries: float[checkpoints, m, dim]."""
        with self.store.collection(collection).reading() as view:
            stream = scores(view, self._question(view, queries, scorer, checkpoints, **given))
            found: dict[Any, np.ndarray] = {}
            for block in stream.blocks:
                for key, column in zip(view.keys_of(block.row_ids), block.scores.T, strict=True):
                    found[decode_key(key)] = column.astype(np.float64)
        return found

    def hits(
        self, queries: np.ndarray, scorer: str, k: int, checkpoints: Sequence[str] = (), **given: Any
    ) -> TopKAnswer:
        with self.collection.reading() as view:
            return top_k(view, self._question(view, queries, scorer, checkpoints, **given), k, indexes=self.cache)

    def _question(
        self, view: Any, queries: np.ndarray, scorer: str, checkpoints: Sequence[str], **given: Any
    ) -> Question:
        vectors = np.asarray(queries, dtype=np.float32)
        choices = [CheckpointChoice(name) for name in checkpoints]
        question = Question(
            vectors=vectors if vectors.ndim == 3 else vectors[None], scorer=scorer, checkpoints=choices, **given
        )
        return with_fit(view, question, self.fit_cache, never)

    def stored(self, keys: Sequence[int], checkpoint: str = "one", collection: str = "c") -> np.ndarray:
        """The decoded gradients of rows, float64[n, dim]."""
        with self.store.collection(collection).reading() as view:
            tile = view.checkpoints[checkpoint].gather(view.row_ids_of([encode_key(key) for key in keys]))
            return tile.rows.astype(np.float64) * tile.scales[:, None]


def assert_close(found: Mapping[Any, np.ndarray], keys: Sequence[int], expected: np.ndarray, reach: np.ndarray) -> None:
    """``expected``: float64[m, n] of the keys in order; ``reach``: what errors are relative to, of its shape."""
    assert set(found) == set(keys)
    ours = np.stack([found[key] for key in keys], axis=1)
    assert np.isfinite(ours).all()
    np.testing.assert_array_less(np.abs(ours - expected), 1e-5 * reach + 1e-30)


def plain_map(rows: np.ndarray, damping: float) -> np.ndarray:
    """(G^T G / n + lambda)^-1, lambda in units of the mean nonzero eigenvalue."""
    moments = rows.T @ rows / len(rows)
    unit = np.trace(moments) / min(rows.shape)
    return np.linalg.inv(moments + damping * unit * np.eye(rows.shape[1]))
