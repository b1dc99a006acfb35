"""A store behaves as a dict does, through refusals, retries, restarts and kills.

The model: text and metadata by key, gradients by (checkpoint, key). A kill is a copy of the files as they are at that
moment, opened as a store of its own.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.faults.erasure_judge import assert_erased

from covector.blocks import encode_key, scale_rows
from covector.errors import Conflict, Unavailable
from covector.types import Key, Space
from covector_server.ingest.batch import Batch, OnConflict, WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compaction import Compaction, Rules
from covector_server.jobs.operations import Progress
from covector_server.limits import Limits
from covector_server.storage.collection import StoredCollectionView
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM = 6
SIZES = Sizes(chunk_bytes=2 * DIM * 4, shard_bytes=2 * DIM * 8, log_file_bytes=500, recent_keys=6)
KEYS: st.SearchStrategy[Key] = st.one_of(st.integers(0, 20), st.sampled_from(["0", "a", "é", "b" * 40]))
POLICIES: st.SearchStrategy[OnConflict] = st.sampled_from(["error", "ignore", "replace"])


def gradient(key: Key, version: int) -> npt.NDArray[np.float32]:
    """The only gradients there are: of a key, in a version. Some are zero."""
    if hash_of(key) % 7 == 3:
        return np.zeros(DIM, dtype=np.float32)
    rng = np.random.default_rng([hash_of(key), version])
    return (rng.standard_normal(DIM) * 10.0 ** rng.integers(-8, 8)).astype(np.float32)


def hash_of(key: Key) -> int:
    return int.from_bytes(encode_key(key)[:9], "big") % 1_000_003


def decoded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    rows, scales = scale_rows(values[None])
    return np.asarray((rows.astype(np.float64) * scales[:, None])[0])


def seen(view: StoredCollectionView) -> dict[str, Any]:
    """All that a view shows."""
    row_ids = np.setdiff1d(np.arange(view.row_id_count), view.deleted)
    keys = view.keys_of(row_ids)
    return {
        "rows": view.details_of(row_ids),
        "found": view.row_ids_of(keys).tolist(),
        "metadata": [entry for _, run in view.metadata() for entry in run],
        "gradients": {
            name: [
                (row_id, row.tobytes(), float(scale))
                for tile in checkpoint.tiles(rows_max=3)
                for row_id, row, scale in zip(tile.row_ids.tolist(), tile.rows, tile.scales, strict=True)
            ]
            for name, checkpoint in view.checkpoints.items()
        },
    }


@dataclass
class Model:
    details: dict[Key, tuple[str | None, dict[str, int] | None]] = field(default_factory=dict)
    versions: dict[tuple[str, Key], int] = field(default_factory=dict)
    deleted_count: int = 0


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.generation = 0
        self.model = Model()
        self.sequences: dict[str, int] = {}
        self.last: tuple[WriterSpec, Batch] | None = None
        self.open()
        self.committer.call(lambda: self.store.create_collection("c", Space(dim=DIM), False)).result()

    def open(self) -> None:
        self.store = Store(self.root / str(self.generation), SIZES)
        self.committer = Committer(self.store, Limits())

    def close(self) -> None:
        self.committer.stop()
        self.store.close()

    @rule(
        checkpoint=st.sampled_from(["one", "two", None]),
        keys=st.lists(KEYS, min_size=1, max_size=11, unique=True),
        version=st.integers(0, 2),
        policy=POLICIES,
        with_details=st.booleans(),
        writer=st.sampled_from(["w1", "w2"]),
    )
    def add(
        self, checkpoint: str | None, keys: list[Key], version: int, policy: OnConflict, with_details: bool, writer: str
    ) -> None:
        self.make_room_for_keys()
        spec = WriterSpec("c", writer, checkpoint, on_conflict=policy)
        texts = [f"text of {key!r}" if with_details else None for key in keys]
        metadata = [{"hash": hash_of(key)} if with_details else None for key in keys]
        gradients = None if checkpoint is None else np.stack([gradient(key, version) for key in keys])
        batch = batch_of(self.sequences.get(writer, 0) + 1, keys, gradients, texts, metadata)
        answer = self.committer.submit(spec, batch)
        old = {key: self.model.versions.get((checkpoint or "", key)) for key in keys}
        differing = [key for key in keys if old[key] is not None and self.differs(key, old[key], version)]
        if checkpoint is not None and differing and policy == "error":
            assert isinstance(answer.exception(), Conflict)
            return
        answer.result()
        self.sequences[writer] = batch.sequence
        self.last = (spec, batch)
        for key, text, entry in zip(keys, texts, metadata, strict=True):
            known = self.model.details.get(key, (None, None))
            self.model.details[key] = (known[0] or text, known[1] or entry)
            if checkpoint is not None and (old[key] is None or policy == "replace"):
                self.model.versions[checkpoint, key] = version

    @staticmethod
    def differs(key: Key, old: int | None, new: int) -> bool:
        return old is not None and not np.array_equal(gradient(key, old), gradient(key, new))

    @precondition(lambda self: self.last is not None)
    @rule()
    def send_again(self) -> None:
        assert self.last is not None
        spec, batch = self.last
        self.committer.submit(spec, batch).result()

    @rule(keys=st.lists(KEYS, min_size=2, max_size=9), checkpoint=st.sampled_from(["one", "two"]))
    def add_at_once(self, keys: list[Key], checkpoint: str) -> None:
        """Batches of one writer, all in flight together: groups build on groups that are not committed yet."""
        self.make_room_for_keys()
        spec = WriterSpec("c", "burst", checkpoint, on_conflict="replace")
        first = self.sequences.get("burst", 0) + 1
        batches = [batch_of(first + n, [key], gradient(key, n % 3)[None]) for n, key in enumerate(keys)]
        for answer in [self.committer.submit(spec, batch) for batch in batches]:
            answer.result()
        self.sequences["burst"] = first + len(keys) - 1
        self.last = (spec, batches[-1])
        for n, key in enumerate(keys):
            self.model.details.setdefault(key, (None, None))
            self.model.versions[checkpoint, key] = n % 3

    @rule(keys=st.lists(KEYS, max_size=5, unique=True))
    def delete(self, keys: list[Key]) -> None:
        collection = self.store.collection("c")
        with collection.reading() as view:
            row_ids = view.row_ids_of([encode_key(key) for key in keys])
        known = [key for key in keys if key in self.model.details]
        assert self.committer.call(lambda: delete_rows(self.store, collection, row_ids)).result() == len(known)
        for key in known:
            del self.model.details[key]
            self.model.versions = {place: v for place, v in self.model.versions.items() if place[1] != key}
        self.model.deleted_count += len(known)

    def make_room_for_keys(self) -> None:
        """Ingest waits for a maintenance thread where too many keys wait to be written; here there is none."""
        if self.store.collection("c").keys._frozen:
            self.maintain_keys()

    @rule()
    def maintain_keys(self) -> None:
        collection = self.store.collection("c")
        while (change := collection.keys.flush(collection.counters.next_row_id) or collection.keys.merge()) is not None:
            self.committer.call(partial(self.store.register_keys, collection, change)).result()

    @rule(share=st.sampled_from([0.0, 0.3]))
    def compact(self, share: float) -> None:
        """An open view is in the way of the end of a compaction; nothing that it shows changes."""
        collection, rules = self.store.collection("c"), Rules(share, readers_wait_s=0.0)
        exclusive = lambda work: self.committer.call(work).result()  # noqa: E731
        progress = Progress(lambda done, total: None)
        with collection.reading() as view:
            shown = seen(view)
            with pytest.raises(Unavailable, match="still read"):
                Compaction(self.store, collection, exclusive, rules).run(progress)
            assert seen(view) == shown
        result = Compaction(self.store, collection, exclusive, rules).run(progress)
        assert result["unverified"] == []
        assert_erased(self.store, collection)
        assert collection.erased_row_count == self.model.deleted_count
        again = Compaction(self.store, collection, exclusive, rules).run(progress)
        assert again["rows_erased"] == again["blocks_rewritten"] == again["key_runs_rewritten"] == 0
        assert all(one["action"] == "none" for one in again["checkpoints"].values())

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    @rule()
    def kill(self) -> None:
        shutil.copytree(self.root / str(self.generation), self.root / str(self.generation + 1))
        self.close()
        self.generation += 1
        self.open()

    @rule()
    def publish(self) -> None:
        self.committer.call(lambda: self.store.publish(self.store.collection("c"))).result()

    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        with self.store.collection("c").reading() as view:
            keys = list(self.model.details)
            row_ids = view.row_ids_of([encode_key(key) for key in keys])
            assert view.row_count == len(keys)
            assert len(set(row_ids.tolist()) - set(view.deleted.tolist())) == len(keys)
            assert len(view.deleted) == self.model.deleted_count
            assert view.row_id_count == len(keys) + self.model.deleted_count
            assert view.keys_of(row_ids) == [encode_key(key) for key in keys]
            details = {key: (row.text, row.metadata) for key, row in zip(keys, view.details_of(row_ids), strict=True)}
            assert details == self.model.details
            runs = [entry for _, run in view.metadata() for entry in run]
            assert {key: runs[row_id] for key, row_id in zip(keys, row_ids, strict=True)} == {
                key: metadata for key, (_, metadata) in self.model.details.items()
            }

    @invariant()
    def gradients_are_those_of_the_model(self) -> None:
        with self.store.collection("c").reading() as view:
            for name, checkpoint in view.checkpoints.items():
                expected = {key: version for (where, key), version in self.model.versions.items() if where == name}
                found = {}
                for tile in checkpoint.tiles(rows_max=3):
                    for row, scale, row_id in zip(tile.rows, tile.scales, tile.row_ids, strict=True):
                        found[view.keys_of(np.array([row_id]))[0]] = row.astype(np.float64) * scale
                assert checkpoint.row_count == len(found) == len(expected)
                for key, version in expected.items():
                    np.testing.assert_array_equal(found[encode_key(key)], decoded(gradient(key, version)))
                row_ids = view.row_ids_of([encode_key(key) for key in expected])
                gathered = checkpoint.gather(row_ids)
                np.testing.assert_array_equal(gathered.row_ids, row_ids)
                assert checkpoint.has(row_ids).all()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.close()
            shutil.rmtree(self.root)


StoreMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestStore = StoreMachine.TestCase
