"""A store of every format that was ever released still opens, and says what it said."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from covector.blocks import encode_key, scale_rows
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

from . import make as recipe

HERE = Path(__file__).parent


@pytest.fixture(params=sorted(path.name for path in HERE.glob("format-*")))
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
