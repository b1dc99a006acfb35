"""Files of gradients, opened without being read: .npy, .npz, .safetensors, and Zarr directories.

Each gives the same three arrays, of which a caller takes rows from ``start`` to ``stop``: ``gradients`` and perhaps
``keys`` and ``trak_q``. Rows are read when they are taken, so that a file may be larger than memory. A file is opened
anew for its turn: a command may name more files than a process may have open.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from covector.cli.options import require
from covector.errors import InvalidInput

GRADIENTS = "gradients"
_KEY_DTYPES = "iuUTO"  # integers, and the ways in which strings come


class RowArray(Protocol):
    """An array whose rows are read when they are taken by a slice of two ends."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of an open file. Rows are read fastest in whole runs of ``chunk_rows``."""

    gradients: RowArray
    keys: RowArray | None = None
    trak_q: RowArray | None = None
    chunk_rows: int = 1


@dataclass(frozen=True, slots=True)
class GradientFile:
    """What is known of a file without reading its rows. ``array`` is the name of the gradients in it."""

    path: Path
    array: str
    row_count: int
    dim: int
    row_bytes: int
    has_keys: bool

    def open(self) -> Arrays:
        """Opens it. Raises InvalidInput if it is another than it was."""
        arrays = open_arrays(self.path, self.array)
        if tuple(arrays.gradients.shape) != (self.row_count, self.dim):
            raise InvalidInput(f"{self.path} changed while it was read; run the command again")
        return arrays


def load_npy(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, mapped. Raises InvalidInput if it is none."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{path} is no .npy file of numbers; write one with numpy.save") from error


def look_at(path: Path, array: str = GRADIENTS) -> GradientFile:
    """Opens a file and checks what its arrays are. Raises InvalidInput saying what is wrong."""
    arrays = open_arrays(path, array)
    row_count, dim = arrays.gradients.shape
    row_bytes = dim * np.dtype(arrays.gradients.dtype).itemsize
    return GradientFile(path, array, row_count, dim, row_bytes, arrays.keys is not None)


def open_arrays(path: Path, array: str) -> Arrays:
    """The arrays of a file, by its name's ending. Raises InvalidInput, or OSError if it cannot be opened."""
    if path.is_dir():
        arrays = _open_zarr(path, array)
    elif (read := _FORMATS.get(path.suffix)) is not None:
        arrays = read(path, array)
    else:
        path.stat()  # a file that is not there is said to be so
        raise InvalidInput(f"{path}: gradients are read from .npy, .npz and .safetensors files and Zarr directories")
    _check(path, arrays)
    return arrays


@contextmanager
def reading(path: Path, start: int) -> Iterator[None]:
    """Makes InvalidInput, with the place, of what the formats raise when bytes are not as they should be."""
    try:
        yield
    except InvalidInput:
        raise
    except (ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path} cannot be read from row {start} on: {error}") from error


def _check(path: Path, arrays: Arrays) -> None:
    shape = tuple(arrays.gradients.shape)
    if len(shape) != 2:
        raise InvalidInput(f"{path}: gradients have shape {list(shape)}, not [n, dim]")
    _check_dtype(path, "gradients", arrays.gradients, "fiu", "real numbers")
    for name, column, kinds, what in (
        ("keys", arrays.keys, _KEY_DTYPES, "strings or integers"),
        ("trak_q", arrays.trak_q, "fiu", "real numbers"),
    ):
        if column is not None:
            _check_dtype(path, name, column, kinds, what)
            if tuple(column.shape) != shape[:1]:
                raise InvalidInput(f"{path}: {name} has shape {list(column.shape)} for {shape[0]} gradients")


def _check_dtype(path: Path, name: str, array: RowArray, kinds: str, what: str) -> None:
    if array.dtype.kind not in kinds:
        raise InvalidInput(f"{path}: {name} are of type {array.dtype}, not {what}")


def _named(path: Path, array: str, names: Iterable[str], take: Callable[[str], RowArray]) -> Arrays:
    """The arrays of a file that holds several by name."""
    known = set(names)
    if array not in known:
        there = ", ".join(sorted(known)) or "none"
        raise InvalidInput(f"{path} has no array `{array}`; it has {there}: name one with --array")
    keys, trak_q = (take(name) if name in known else None for name in ("keys", "trak_q"))
    return Arrays(take(array), keys, trak_q)


def _open_npy(path: Path, array: str) -> Arrays:
    del array  # a .npy file holds one array
    return Arrays(load_npy(path))


# .npz: a ZIP archive of .npy files, read as a stream, since a member may be compressed


class _Member:
    """An array in an archive. Rows are best taken in order: to go back in a compressed one is to begin again."""

    def __init__(self, file: IO[bytes]) -> None:
        version = np.lib.format.read_magic(file)
        if version not in {(1, 0), (2, 0)}:
            raise ValueError(f"version {version} of .npy is of arrays with fields")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, by_columns, self.dtype = read(file)
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects")
        if by_columns and len(self.shape) > 1:
            raise ValueError("an array stored by columns cannot be read by rows: save numpy.ascontiguousarray of it")
        self._file = file
        self._start_bytes = file.tell()
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        size = (rows.stop - rows.start) * self._row_bytes
        self._file.seek(self._start_bytes + rows.start * self._row_bytes)
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("the file ends within an array")
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


def _open_npz(path: Path, array: str) -> Arrays:
    try:
        archive = zipfile.ZipFile(path)  # closed with the last of its members
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        return _named(path, array, names, lambda name: _Member(archive.open(f"{name}.npy")))
    except InvalidInput:
        raise
    except (ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path} is no .npz file of numbers and strings: {error}") from error


# .safetensors


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor, read through the package's lazy slices."""

    lazy: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        return np.asarray(self.lazy[rows])


@dataclass(frozen=True, slots=True)
class _BFloat16:
    """A bfloat16 tensor, which numpy does not know: the upper halves of float32 numbers, mapped from the file."""

    halves: npt.NDArray[np.uint16]
    dtype: np.dtype[np.float32] = np.dtype(np.float32)  # noqa: RUF009  # a dtype never changes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.halves.shape

    def __getitem__(self, rows: slice, /) -> npt.NDArray[np.float32]:
        return (self.halves[rows].astype("<u4") << 16).view("<f4")


_TENSOR_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", **{f"I{8 * n}": f"i{n}" for n in (1, 2, 4, 8)}}
_TENSOR_DTYPES |= {f"U{8 * n}": f"u{n}" for n in (1, 2, 4, 8)}


def _open_safetensors(path: Path, array: str) -> Arrays:
    require(["safetensors"], "ingest", f"reading {path}")
    from safetensors import SafetensorError, safe_open

    path.stat()
    try:
        file: Any = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise InvalidInput(f"{path} is no .safetensors file: {error}") from error

    def take(name: str) -> RowArray:
        lazy = file.get_slice(name)
        kind, shape = lazy.get_dtype(), tuple(lazy.get_shape())
        if kind == "BF16":
            return _BFloat16(_mapped_halves(path, name, shape))
        if kind not in _TENSOR_DTYPES:
            raise InvalidInput(f"{path}: {name} are of type {kind}, not real numbers")
        return _Tensor(lazy, shape, np.dtype(_TENSOR_DTYPES[kind]))

    return _named(path, array, file.keys(), take)


def _mapped_halves(path: Path, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """The 16-bit words of a tensor, by the file's own header: 8 bytes of its length, then JSON with offsets."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        start = json.loads(file.read(header_bytes))[name]["data_offsets"][0]
    if 0 in shape:
        return np.empty(shape, dtype="<u2")
    return np.memmap(path, dtype="<u2", mode="r", offset=8 + header_bytes + start, shape=shape)


# Zarr, versions 2 and 3: an array, or a group with arrays


def _open_zarr(path: Path, array: str) -> Arrays:
    require(["zarr"], "ingest", f"reading {path}")
    import zarr

    try:
        node = zarr.open(path, mode="r")
        arrays = Arrays(node) if isinstance(node, zarr.Array) else _of_group(path, array, node)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path} is no Zarr array or group: {error}") from error
    chunks: Any = arrays.gradients
    return Arrays(
        arrays.gradients, arrays.keys, arrays.trak_q, chunk_rows=int(chunks.chunks[0]) if chunks.chunks else 1
    )


def _of_group(path: Path, array: str, group: Any) -> Arrays:
    return _named(path, array, group.array_keys(), lambda name: group[name])


_FORMATS: dict[str, Callable[[Path, str], Arrays]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
}
