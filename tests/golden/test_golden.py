"""A store of every format that was ever released still opens, and says what it said."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from covector.blocks import encode_key, scale_rows
from covector_server.check.store import check_store
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.query.cancellation import never
from covector_server.query.filter import matching_rows
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

from . import make as recipe

HERE = Path(__file__).parent


FORMATS = sorted(path.name for path in HERE.glob("format-*"))


@pytest.fixture(params=FORMATS[1:])
def newer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store with the collection ``grown``."""
    shutil.copytree(HERE / request.param, tmp_path / "store")
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(HERE / request.param, tmp_path / "store")
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def test_rows_are_what_they_were(store: Store) -> None:
    with store.collection("golden").reading() as view:
        assert view.space == recipe.SPACE
        assert view.row_count == recipe.ROWS + 1
        assert view.fields == {"source": "string", "number": "number", "third": "boolean"}
        row_ids = view.row_ids_of([encode_key(recipe.key_of(row)) for row in range(recipe.ROWS)])
        for row, details in enumerate(view.details_of(row_ids)):
            assert details.text == ("a late text" if row == 5 else recipe.text_of(row))
            assert details.metadata == recipe.metadata_of(row)
        lone = view.details_of(view.row_ids_of([encode_key("no gradient")]))[0]
        assert (lone.text, lone.metadata) == ("text alone", None)


@pytest.mark.parametrize("checkpoint", [1, 2])
def test_gradients_are_what_they_were(store: Store, checkpoint: int) -> None:
    with store.collection("golden").reading() as view:
        stored = view.checkpoints[f"epoch-{checkpoint}"]
        assert (stored.eta, stored.weights_digest, stored.kind) == (checkpoint / 4, "ab" * 32, recipe.KIND)
        expected = recipe.gradients_of(checkpoint)
        if checkpoint == 2:
            expected[3] = 2.5
        rows, scales = scale_rows(expected)
        found = stored.gather(view.row_ids_of([encode_key(recipe.key_of(row)) for row in range(recipe.ROWS)]))
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.scales, scales)


def test_any_zarr_reader_opens_it(store: Store) -> None:
    directory = store.collection("golden").checkpoints["epoch-1"].directory
    rows, scales = (zarr.open_array(directory / name, mode="r")[...] for name in ("gradients", "scales"))
    expected = recipe.gradients_of(1)[recipe.order_of(1)]
    np.testing.assert_array_equal(rows, scale_rows(expected)[0])
    np.testing.assert_array_equal(scales, scale_rows(expected)[1])


def test_what_was_deleted_is_gone_and_the_rest_is_found(newer: Store) -> None:
    again = {row for row in range(20) if recipe.erased_of(row) or recipe.deleted_of(row)}
    live = [row for row in range(recipe.GROWN) if row in again or not (recipe.erased_of(row) or recipe.deleted_of(row))]
    with newer.collection("grown").reading() as view:
        assert view.row_count == len(live)
        row_ids = view.row_ids_of([encode_key(recipe.key_of(row)) for row in range(recipe.GROWN)])
        assert np.flatnonzero(row_ids >= 0).tolist() == live
        for row, details in zip(live, view.details_of(row_ids[live]), strict=True):
            assert (details.text, details.metadata) == (recipe.text_of(row), recipe.metadata_of(row))
        found = view.checkpoints["only"].gather(row_ids[live])
        rows, scales = scale_rows(recipe.grown_gradients()[live])
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.scales, scales)
        assert sum(len(tile.row_ids) for tile in view.checkpoints["only"].tiles(7)) == len(live)
        mask = matching_rows(view, {"third": True, "number": {"lt": 100}}, Limits(), never)
        assert set(np.flatnonzero(mask)) == {row_ids[row] for row in live if row % 3 == 0 and row < 100}
        assert view.postings()
    assert newer.collection("grown").keys.run_paths


@pytest.mark.parametrize("name", FORMATS)
def test_it_passes_the_check(name: str, tmp_path: Path) -> None:
    shutil.copytree(HERE / name, tmp_path / "store")
    assert check_store(tmp_path / "store").findings == []


def test_it_takes_more_rows(store: Store) -> None:
    committer = Committer(store, Limits())
    spec = WriterSpec("golden", "later", "epoch-1", 0.25)
    committer.submit(spec, batch_of(1, ["new"], np.ones((1, recipe.DIM)))).result()
    committer.stop()
    with store.collection("golden").reading() as view:
        assert view.checkpoints["epoch-1"].row_count == recipe.ROWS + 1


def test_the_recipe_makes_the_newest_format(tmp_path: Path) -> None:
    recipe.make(tmp_path / "made")
    newest = max(HERE.glob("format-*"))
    for path in sorted(newest.rglob("*")):
        if path.is_file() and path.name not in ("catalog.lmdb", "catalog.lmdb-lock", "lock"):
            assert (tmp_path / "made" / path.relative_to(newest)).read_bytes() == path.read_bytes(), path
