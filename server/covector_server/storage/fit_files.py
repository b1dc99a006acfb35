"""The files of fits: directories below ``fits/`` of a collection, made as ``storage.drafts`` says, which the catalog's
table of that name lists.

A fit has a directory for each of its checkpoints, and one on its way has a directory of where it stands. Each holds a
manifest and ``arrays``, a Zarr group of arrays of one chunk, uncompressed: the chunk's file holds the numbers as they
are, so any Zarr reader opens it and the server maps it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.errors import Conflict, Corrupt, LimitExceeded, NotFound, near_matches
from covector_server.metadata.catalog import Catalog, Reader, Writer, number
from covector_server.metadata.records import CheckpointRecord, FilesRecord, FitRecord
from covector_server.storage import drafts
from covector_server.storage.disk import Disk
from covector_server.storage.drafts import Check, Draft, Listed, MappedFiles, Moved

FITS = "fits"
REMEDY = "drop the fit, and fit again"
KIND = "fit"
ARRAYS = "arrays"  # the Zarr group, beside the manifest

Arrays = Mapping[str, npt.NDArray[Any]]


# Records


def listed_fits(reader: Reader, collection_id: int) -> list[FitRecord]:
    """The fits of a collection, those on their way included. Raises Corrupt for a damaged entry."""
    return [FitRecord.decode(value) for _, value in reader.scan("fits", number(collection_id))]


def fit_key(collection_id: int, fit_id: str) -> bytes:
    """The key of a fit in its table."""
    return number(collection_id) + fit_id.encode()


def put_fit(writer: Writer, collection_id: int, record: FitRecord) -> None:
    """Lists a fit, or what is new of it, whatever stood there."""
    writer.put("fits", fit_key(collection_id, record.id), record.encode())


def remove_fit(writer: Writer, collection_id: int, fit_id: str) -> None:
    """Takes a fit off the list."""
    writer.delete("fits", fit_key(collection_id, fit_id))


def drop_fit(writer: Writer, collection_id: int, fit_id: str) -> list[str]:
    """Takes a fit off the list, and returns its directories. Raises NotFound."""
    known = {record.id: record for record in listed_fits(writer, collection_id)}
    if fit_id not in known:
        raise NotFound(f"no fit {fit_id!r}; {near_matches(fit_id, known)}", fit=fit_id)
    remove_fit(writer, collection_id, fit_id)
    return [one.directory for one in known[fit_id].stored]


def advance_fit(
    writer: Writer,
    collection_id: int,
    record: FitRecord,
    before: FitRecord | None,
    *,
    generations: Mapping[int, int],
    fits_max: int,
) -> list[str]:
    """Lists a fit in the place of what was listed of it ``before``; a finished one also in the place of those of the
    same parameters. Returns the directories that nothing lists any more.

    ``generations``: of the checkpoints that it speaks of, by id. Raises Moved if one has another by now, or if somebody
    else changed what was listed; Conflict if the collection or the fit was dropped; LimitExceeded.
    """
    if writer.get("collections", number(collection_id)) is None:
        raise Conflict("the collection was deleted while the fit was learnt")
    for checkpoint_id, generation in generations.items():
        value = writer.get("checkpoints", number(collection_id, checkpoint_id))
        if value is None or CheckpointRecord.decode(value).generation != generation:
            raise Moved("the checkpoint was compacted while the fit was learnt; start it again")
    _check_unchanged(writer, collection_id, record.id, before)
    others = [other for other in listed_fits(writer, collection_id) if other.id != record.id]
    replaced = [other for other in others if record.is_finished and other.parameters == record.parameters]
    if len(others) - len(replaced) >= fits_max:
        raise LimitExceeded(
            f"the collection has {len(others)} fits: the limit is fits={fits_max}; drop one first",
            limit="fits",
            value=len(others) + 1,
        )
    for other in replaced:
        remove_fit(writer, collection_id, other.id)
    put_fit(writer, collection_id, record)
    kept = {one.directory for one in record.stored}
    gone = [one.directory for old in [*replaced, *([] if before is None else [before])] for one in old.stored]
    return [directory for directory in gone if directory not in kept]


def _check_unchanged(writer: Writer, collection_id: int, fit_id: str, before: FitRecord | None) -> None:
    value = writer.get("fits", fit_key(collection_id, fit_id))
    if before is None:
        return
    if value is None:
        raise Conflict(f"fit {fit_id} was dropped while it was learnt", fit=fit_id)
    if FitRecord.decode(value) != before:
        raise Moved(f"fit {fit_id} is also being learnt by somebody else; start it again when that has ended")


# Files


@contextmanager
def fit_draft(collection_directory: Path, method: str, disk: Disk) -> Iterator[Draft]:
    """A new directory for a part of a fit, or its state, as ``drafts.drafting``."""
    with drafts.drafting(collection_directory / FITS, method, disk, "fit.created") as draft:
        yield draft


def remove_unlisted_fits(collection_directory: Path, collection_id: int, catalog: Catalog, disk: Disk) -> int:
    """Removes directories of fits that are orphans, as ``drafts.remove_unlisted``."""
    return drafts.remove_unlisted(collection_directory / FITS, _listing(collection_id, catalog), disk)


def unlisted_fits(collection_directory: Path, collection_id: int, catalog: Catalog) -> list[Path]:
    """Directories of fits that the catalog does not list, some of which may be being filled. Raises Corrupt."""
    return drafts.unlisted(collection_directory / FITS, _listing(collection_id, catalog))


def _listing(collection_id: int, catalog: Catalog) -> Listed:
    def names() -> set[str]:
        with catalog.read() as reader:
            records = listed_fits(reader, collection_id)
        return {one.directory for record in records for one in record.stored}

    return names


def write_fit_files(draft: Draft, facts: Mapping[str, Any], arrays: Arrays, check: Check) -> FilesRecord:
    """Writes arrays and facts (JSON values), durably. ``check`` is called between pieces."""
    with draft.file(f"{ARRAYS}/zarr.json") as file:
        file.append(_json({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array)
        directory = array_directory(name)
        with draft.file(f"{directory}/zarr.json") as file:
            file.append(_json(_array_document(plain)))
        with draft.file(_chunk(directory, plain.ndim)) as file:
            _append(file, plain.astype(plain.dtype.newbyteorder("<"), copy=False), check)
    files, checksum = draft.add_manifest(KIND, dict(facts))
    return FilesRecord(draft.directory.name, files, checksum)


def _append(file: drafts.DraftFile, array: npt.NDArray[Any], check: Check) -> None:
    data = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(data), drafts.PIECE_BYTES):
        check()
        file.append(data[start : start + drafts.PIECE_BYTES])


def open_fit_files(
    root: Path, stored: FilesRecord, check: Check, is_wanted: Callable[[str], bool] = bool
) -> MappedFiles:
    """Maps and verifies a directory of a fit below ``root``, as ``drafts.open_files``."""
    return drafts.open_files(root / stored.directory, stored.checksum, REMEDY, check, is_wanted)


def arrays_of(files: MappedFiles) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a directory, mapped, by name. Raises Corrupt where the metadata is not what was written."""
    found = {}
    for path, mapped in files.maps.items():
        directory, _, rest = path.rpartition("/")
        if rest == "zarr.json" and directory != ARRAYS:
            document = json.loads(bytes(mapped))
            shape: Sequence[int] = document["shape"]
            data = files.maps.get(_chunk(directory, len(shape)), memoryview(b""))
            dtype = np.dtype(document["data_type"])
            if len(data) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
                raise Corrupt(f"{files.directory / directory} has another size than its zarr.json says; {REMEDY}")
            found[directory.removeprefix(f"{ARRAYS}/").replace(".", "/")] = np.frombuffer(
                data, dtype=dtype.newbyteorder("<")
            ).reshape(shape)
    return found


def array_directory(name: str) -> str:
    """Where the array of this name lies; also the beginning of where those lie whose names begin so."""
    return f"{ARRAYS}/{name.replace('/', '.')}"


def _chunk(directory: str, dimension_count: int) -> str:
    return "/".join([directory, "c", *["0"] * dimension_count])


def _json(document: dict[str, Any]) -> memoryview:
    return memoryview(json.dumps(document, indent=1).encode())


def _array_document(array: npt.NDArray[Any]) -> dict[str, Any]:
    """The ``zarr.json`` of an array in one chunk (Zarr v3 core specification)."""
    chunk = [max(1, length) for length in array.shape]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
