"""Files of gradients and of rows: each format gives the same rows, a piece at a time, and says what is wrong."""

from __future__ import annotations

import datetime as dt
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import parquet
from safetensors.numpy import save_file

from covector.cli import sources as sources_module
from covector.cli.gradient_files import look_at
from covector.cli.row_files import Columns, JsonLines, ParquetRows
from covector.cli.sources import Numbering, Slice, Sources, sources_of
from covector.errors import InvalidInput

ROWS, DIM = 53, 7
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
KEYS = np.arange(100, 100 + ROWS)
Q = np.linspace(0, 1, ROWS, dtype=np.float32)
Write = Callable[[Path], Path]


def write_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", NUMBERS)
    return folder / "a.npy"


def write_npy_by_columns(folder: Path) -> Path:
    np.save(folder / "f.npy", np.asfortranarray(NUMBERS))
    return folder / "f.npy"


def write_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", gradients=NUMBERS, keys=KEYS, trak_q=Q)
    return folder / "a.npz"


def write_compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "c.npz", gradients=NUMBERS, keys=KEYS, trak_q=Q)
    return folder / "c.npz"


def write_safetensors(folder: Path) -> Path:
    save_file({"gradients": NUMBERS, "keys": KEYS, "trak_q": Q}, folder / "a.safetensors")
    return folder / "a.safetensors"


def write_zarr(folder: Path, version: Any = 3, **layout: Any) -> Path:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=version)
    for name, values in (("gradients", NUMBERS), ("keys", KEYS), ("trak_q", Q)):
        options = layout if name == "gradients" else {"chunks": (len(values) // 5,)}
        group.create_array(name, shape=values.shape, dtype=values.dtype, **{"chunks": (5, 3), **options})[...] = values
    return folder / "a.zarr"


def write_zarr_2(folder: Path) -> Path:
    return write_zarr(folder, 2)


def write_sharded_zarr(folder: Path) -> Path:
    return write_zarr(folder, chunks=(4, DIM), shards=(16, DIM))


WITH_KEYS = [write_npz, write_compressed_npz, write_safetensors, write_zarr, write_zarr_2, write_sharded_zarr]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of six rows or less, so that a file has many."""
    monkeypatch.setattr(sources_module, "SLICE_BYTES", 6 * 4 * DIM + 3)
    monkeypatch.setattr(sources_module, "SLICE_ROWS", 11)


def opened(*files: Path, rows: list[Path] | None = None, array: str = "gradients", **columns: Any) -> Sources:
    numbering = columns.pop("numbering", Numbering())
    return sources_of(files, rows or [], array=array, columns=Columns(**columns), numbering=numbering)


def checked(sources: Sources) -> list[Slice]:
    sources.check(lambda done: None)
    return list(sources.slices())


def gradients_in(slices: list[Slice]) -> np.ndarray:
    return np.concatenate([part.gradients() for part in slices])


def keys_in(slices: list[Slice]) -> list[Any]:
    return [key for part in slices for key in part.keys]


@pytest.mark.parametrize("write", WITH_KEYS)
def test_formats_with_keys(tmp_path: Path, write: Write) -> None:
    slices = checked(opened(write(tmp_path)))
    np.testing.assert_array_equal(gradients_in(slices), NUMBERS)
    assert keys_in(slices) == KEYS.tolist()
    np.testing.assert_array_equal(np.concatenate([part.trak_q for part in slices if part.trak_q is not None]), Q)
    assert [row for part in slices for row in part.rows] == list(range(ROWS))
    assert len(slices) >= ROWS // 8


@pytest.mark.parametrize("write", [write_npy, write_npy_by_columns])
def test_npy(tmp_path: Path, write: Write) -> None:
    slices = checked(opened(write(tmp_path)))
    np.testing.assert_array_equal(gradients_in(slices), NUMBERS)
    assert keys_in(slices) == list(range(ROWS))


def test_a_zarr_array_by_itself_and_an_array_by_name(tmp_path: Path) -> None:
    path = write_zarr(tmp_path) / "gradients"
    np.testing.assert_array_equal(gradients_in(checked(opened(path))), NUMBERS)
    np.savez(tmp_path / "b.npz", first=NUMBERS, second=-NUMBERS)
    np.testing.assert_array_equal(gradients_in(checked(opened(tmp_path / "b.npz", array="second"))), -NUMBERS)


def test_slices_of_zarr_end_where_chunks_do(tmp_path: Path) -> None:
    starts = [part.rows[0] for part in checked(opened(write_sharded_zarr(tmp_path)))]
    assert starts == list(range(0, ROWS, 4))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64, np.int8])
def test_numbers_of_safetensors(tmp_path: Path, dtype: Any) -> None:
    numbers = (NUMBERS * 10).astype(dtype)
    save_file({"first": np.zeros(3, np.float32), "gradients": numbers}, tmp_path / "a.safetensors")
    found = gradients_in(checked(opened(tmp_path / "a.safetensors")))
    np.testing.assert_array_equal(found.astype(np.float64), numbers.astype(np.float64))


def test_some_rows_of_a_slice(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(f'{{"text": "t{row}", "n": {row}}}\n' for row in range(ROWS)))
    slices = checked(opened(write_npz(tmp_path), rows=[tmp_path / "r.jsonl"]))
    part = slices[1].only([KEYS[6], KEYS[9]])
    assert (part.keys, list(part.rows), part.texts) == ([106, 109], [6, 9], ["t6", "t9"])
    assert part.metadata == [{"n": 6}, {"n": 9}]
    np.testing.assert_array_equal(part.gradients(), NUMBERS[[6, 9]])
    np.testing.assert_array_equal(part.trak_q, Q[[6, 9]])


def test_positions_as_keys(tmp_path: Path) -> None:
    path = write_npy(tmp_path)
    assert keys_in(checked(opened(path, path, numbering=Numbering(5)))) == list(range(5, 5 + 2 * ROWS))
    assert keys_in(checked(opened(path, numbering=Numbering(5, "row-"))))[:2] == ["row-5", "row-6"]


@pytest.mark.parametrize("write", [write_npz, write_compressed_npz, write_safetensors, write_zarr])
def test_a_large_file_is_never_whole_in_memory(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_client_sources.NUMBERS", np.ones((16 << 10, 256), np.float32))
    monkeypatch.setattr("tests.unit.test_client_sources.KEYS", np.arange(16 << 10))
    monkeypatch.setattr("tests.unit.test_client_sources.Q", np.ones(16 << 10, np.float32))
    monkeypatch.setattr(sources_module, "SLICE_BYTES", 1 << 20)
    monkeypatch.setattr(sources_module, "SLICE_ROWS", 1 << 16)
    path = write(tmp_path) if write is not write_zarr else write_zarr(tmp_path, chunks=(512, 256))
    sources = opened(path)
    tracemalloc.start()
    sources.check(lambda done: None)
    rows = sum(len(part.gradients()) for part in sources.slices())
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 16 << 10
    assert peak_bytes < 8 << 20  # of 16 MiB


DESCRIBED: list[dict[str, Any]] = [
    {"key": "a", "text": "one", "metadata": {"year": 2000, "ok": True}, "trak_q": 0.5, "source": "x"},
    {"key": "b", "text": None, "metadata": None, "trak_q": None, "source": None},
    {"key": "c", "text": "three", "metadata": {"year": 2001, "ok": None}, "trak_q": 1.0, "source": "z"},
]


def write_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "r.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    return folder / "r.jsonl"


def write_parquet(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "r.parquet", row_group_size=2)
    return folder / "r.parquet"


def test_json_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    lines = JsonLines(write_json(tmp_path, DESCRIBED), Columns())
    table = ParquetRows(write_parquet(tmp_path, DESCRIBED), Columns())
    assert list(lines.rows()) == list(table.rows())
    assert list(lines.keys()) == list(table.keys()) == ["a", "b", "c"]
    assert [row.metadata for row in table.rows()] == [
        {"source": "x", "year": 2000, "ok": True},
        {"source": None},
        {"source": "z", "year": 2001, "ok": None},
    ]
    assert [(row.text, row.trak_q) for row in table.rows()] == [("one", 0.5), (None, None), ("three", 1.0)]


@pytest.mark.parametrize("columns", [Columns(metadata=("source",)), Columns("id", "body", ("n",)), Columns("id")])
def test_named_columns(tmp_path: Path, columns: Columns) -> None:
    rows = [
        {**row, "id": number, "body": f"b{number}", "n": [number], "metadata": None}
        for number, row in enumerate(DESCRIBED)
    ]
    if columns.metadata != ("source",):
        rows = [{**row, "n": number} for number, row in enumerate(rows)]
    lines = JsonLines(write_json(tmp_path, rows), columns)
    table = ParquetRows(write_parquet(tmp_path, rows), columns)
    assert list(lines.rows()) == list(table.rows())
    assert list(lines.keys()) == list(table.keys()) == [row.key for row in table.rows()]
    first = next(table.rows())
    if columns.metadata == ("source",):
        assert (first.key, first.text, first.metadata) == ("a", "one", {"source": "x"})
    elif columns.metadata == ("n",):
        assert (first.key, first.text, first.metadata) == (0, "b0", {"n": 0})
    else:
        assert (first.key, first.text) == (0, "one")
        assert first.metadata == {"key": "a", "source": "x", "body": "b0", "n": 0}


def test_metadata_in_parquet_may_be_json_or_a_map_and_times_are_text(tmp_path: Path) -> None:
    at, schema = (
        dt.datetime(2020, 5, 1, 12),
        pa.schema([("metadata", pa.map_(pa.string(), pa.int64())), ("at", pa.timestamp("s"))]),
    )
    rows = [{"metadata": [("a", 1), ("b", 2)], "at": at}]
    (row,) = ParquetRows(write_parquet(tmp_path, rows, schema), Columns()).rows()
    assert (row.key, row.metadata) == (None, {"a": 1, "b": 2, "at": "2020-05-01T12:00:00"})
    (row,) = ParquetRows(write_parquet(tmp_path, [{"metadata": '{"a": 1.5}', "day": at.date()}]), Columns()).rows()
    assert row.metadata == {"a": 1.5, "day": "2020-05-01"}


def test_a_rows_file_for_all_or_one_for_each(tmp_path: Path) -> None:
    path = write_npy(tmp_path)
    both = write_json(tmp_path, [{"key": f"k{row}"} for row in range(2 * ROWS)])
    assert keys_in(checked(opened(path, path, rows=[both]))) == [f"k{row}" for row in range(2 * ROWS)]
    first = write_parquet(tmp_path, [{"key": row} for row in range(ROWS)])
    second = tmp_path / "second.jsonl"
    second.write_text("".join(f'{{"key": "s{row}"}}\n' for row in range(ROWS)))
    expected = [*range(ROWS), *(f"s{row}" for row in range(ROWS))]
    assert keys_in(checked(opened(path, path, rows=[first, second]))) == expected


def few(folder: Path, count: int, **first: Any) -> Path:
    return write_json(folder, [{"key": "k0", **first}, *({"key": f"k{row}"} for row in range(1, count))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: few(folder, ROWS - 1), "r.jsonl has 52 rows for 53 gradients; one row a gradient"),
        (lambda folder: few(folder, ROWS + 20), "r.jsonl has 73 rows for 53 gradients"),
        (
            lambda folder: few(folder, ROWS, key="k31"),
            r"key 'k31' stands twice: at row 0 of .*a.npy and row 31 of .*a.n",
        ),
        (
            lambda folder: few(folder, ROWS, key=None),
            r"r.jsonl, line 1: a key is a string or an integer of 64 bits, not No",
        ),
        (lambda folder: few(folder, ROWS, key=1 << 63), "not 9223372036854775808"),
        (lambda folder: few(folder, ROWS, key=1.5), r"not 1\.5"),
        (lambda folder: few(folder, ROWS, text=3), "line 1: the text is int"),
        (lambda folder: few(folder, ROWS, metadata=[1]), "line 1: the metadata is list"),
        (lambda folder: few(folder, ROWS, metadata="{"), "line 1: the metadata is not JSON"),
        (lambda folder: few(folder, ROWS, trak_q="much"), "line 1: trak_q is str"),
        (lambda folder: write_parquet(folder, [{"key": True}] * ROWS), r"r.parquet, row 0: a key is .* not True"),
        (lambda folder: write_parquet(folder, [{"key": 1}] * ROWS), "key 1 stands twice"),
        (lambda folder: write_parquet(folder, [{"key": 1}]), "r.parquet has 1 rows for 53"),
    ],
)
def test_wrong_rows_are_refused_before_any_is_read(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        opened(write_npy(tmp_path), rows=[make(tmp_path)]).check(lambda done: None)


def test_a_key_of_two_files_is_placed_in_both(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", gradients=NUMBERS[:3], keys=["x", "y", "z"])
    np.savez(tmp_path / "c.npz", gradients=NUMBERS[:2], keys=["w", "z"])
    with pytest.raises(InvalidInput, match=r"key 'z' stands twice: at row 2 of .*b.npz and row 1 of .*c.npz"):
        opened(tmp_path / "b.npz", tmp_path / "c.npz").check(lambda done: None)


def test_counts_of_rows_files_for_each(tmp_path: Path) -> None:
    path = write_npy(tmp_path)
    for count in (ROWS - 1, ROWS + 1):
        rows = [few(tmp_path, ROWS), write_parquet(tmp_path, [{"key": row} for row in range(count)])]
        with pytest.raises(InvalidInput, match=f"r.parquet has {count} rows for 53 gradients"):
            opened(path, path, rows=rows).check(lambda done: None)
    with pytest.raises(InvalidInput, match="2 rows files for 3 files of gradients"):
        opened(path, path, path, rows=rows)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": "kee"}, r"no column 'kee'; did you mean 'key'|line 1 has no field 'kee'; did you mean 'key'"),
        ({"text": "body"}, "has no column 'body'|no row of .*r.jsonl has the field 'body'"),
        ({"metadata": ("key", "year")}, "has no column 'year'|no row of .*r.jsonl has the field 'year'"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    rows = [{"key": row} for row in range(ROWS)]
    for path in (write_json(tmp_path, rows), write_parquet(tmp_path, rows)):
        with pytest.raises(InvalidInput, match=message):
            opened(write_npy(tmp_path), rows=[path], **columns).check(lambda done: None)


def bad_files(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "objects.npz", gradients=np.array([[None]], dtype=object))
    np.savez(folder / "columns.npz", gradients=np.asfortranarray(NUMBERS))
    np.savez(folder / "other.npz", weights=NUMBERS)
    np.savez(folder / "keys.npz", gradients=NUMBERS, keys=[1.5] * ROWS)
    np.savez(folder / "few_keys.npz", gradients=NUMBERS, keys=[1])
    np.save(folder / "complex.npy", NUMBERS.astype(complex))
    np.save(folder / "flat.npy", NUMBERS[0])
    np.save(folder / "wide.npy", np.ones((2, DIM + 1)))
    save_file({"gradients": NUMBERS > 0}, folder / "bool.safetensors")
    save_file({"a": NUMBERS}, folder / "names.safetensors")
    for name in ("bad.npy", "bad.npz", "bad.safetensors"):
        (folder / name).write_bytes(b"nothing of the sort")
    (folder / "empty").mkdir()
    (folder / "bad.parquet").write_bytes(b"nothing of the sort")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("objects.npz", "is no .npz file of numbers and strings: it holds Python objects"),
        ("columns.npz", "save numpy.ascontiguousarray of it"),
        ("other.npz", "has no array `gradients`; it has weights: name one with --array"),
        ("keys.npz", "keys are of type float64, not strings or integers"),
        ("few_keys.npz", r"keys has shape \[1\] for 53 gradients"),
        ("complex.npy", "gradients are of type complex128, not real numbers"),
        ("flat.npy", r"gradients have shape \[7\], not \[n, dim\]"),
        ("bool.safetensors", "gradients are of type BOOL, not real numbers"),
        ("names.safetensors", "it has a: name one"),
        ("bad.npy", "is no .npy file of numbers"),
        ("bad.npz", "is no .npz file"),
        ("bad.safetensors", "is no .safetensors file"),
        ("empty", "is no Zarr array or group"),
        ("bad.parquet", "gradients are read from .npy, .npz and .safetensors files and Zarr directories"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}.*{message}"):
        look_at(bad_files(tmp_path / "bad")[name])


def test_wrong_files_together(tmp_path: Path) -> None:
    files = bad_files(tmp_path / "bad")
    with pytest.raises(InvalidInput, match=r"wide.npy has gradients of dim 8, .*a.npy of dim 7"):
        opened(write_npy(tmp_path), files["wide.npy"])
    with pytest.raises(InvalidInput, match=r"bad.parquet is no Parquet file"):
        opened(write_npy(tmp_path), rows=[files["bad.parquet"]]).check(lambda done: None)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError):
        opened(write_npy(tmp_path), rows=[tmp_path / "nowhere.jsonl"])


def test_a_damaged_file_is_named_where_it_is_read(tmp_path: Path) -> None:
    path = write_compressed_npz(tmp_path)
    data = bytearray(path.read_bytes())
    data[400:440] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"c.npz (cannot be read from row \d+ on|is no .npz)"):
        gradients_in(checked(opened(path)))
    path = write_npy(tmp_path)
    sources = opened(path)
    np.save(path, NUMBERS[:5])
    with pytest.raises(InvalidInput, match=r"a.npy changed while it was read"):
        list(sources.slices())


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "r.parquet"), ("safetensors", "a.safetensors"), ("zarr", "a.zarr")]
)
def test_a_missing_package_names_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    files = {path.name: path for path in (write_npy(tmp_path), write_safetensors(tmp_path), write_zarr(tmp_path))}
    rows = write_parquet(tmp_path, [{"key": row} for row in range(ROWS)])
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module == package else found(module))
    with pytest.raises(InvalidInput, match=rf'{name} needs {package}; install it: pip install "covector\[ingest\]"'):
        checked(opened(files.get(name, files["a.npy"]), rows=[rows]))
