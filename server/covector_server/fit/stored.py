"""A fit of one checkpoint between memory and files: A and w as arrays, what is known of them as JSON values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from covector.attribution.checkpoint_fit import CheckpointFit
from covector.attribution.learning import FitJob
from covector.attribution.planning import plan_of
from covector.attribution.scoring import Float64
from covector.errors import Corrupt
from covector_server.fit.served_map import served
from covector_server.fit.spec import can_fold
from covector_server.storage.drafts import MappedFiles
from covector_server.storage.fit_files import REMEDY, Arrays, array_directory, arrays_of

MAP, JOB = "map/", "job/"  # before the names of arrays: of A, and of the sums that more rows can be added to
ROW_FACTORS = "row_factors"


@dataclass(frozen=True, slots=True, eq=False)
class StoredPart:
    """``fit`` with arrays that are mapped; ``factors``: float64[row ids], w * scale of the rows it learnt from, NaN for
    others; None where weights follow from the rows' columns. ``size_bytes``: of what is mapped."""

    fit: CheckpointFit
    factors: Float64 | None
    size_bytes: int


def part_arrays(fit: CheckpointFit, factors: Float64 | None, job: FitJob) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a part. The job's sums are kept where rows can be added to them."""
    found = {MAP + name: array for name, array in fit.arrays().items()}
    if factors is not None:
        found[ROW_FACTORS] = factors
    if can_fold(job.plan):
        found.update(job_arrays(job))
    return found


def job_arrays(job: FitJob) -> dict[str, npt.NDArray[Any]]:
    """Where a job stands. Views: write them before it goes on."""
    return {JOB + name: array for name, array in job.state().items()}


def is_served(path: str) -> bool:
    """Whether a file of a part is needed to answer queries."""
    return not path.startswith(array_directory(JOB))


def open_part(files: MappedFiles) -> StoredPart:
    """The part in files. Raises Corrupt if they are not of one."""
    arrays = arrays_of(files)
    try:
        fit = CheckpointFit.of(files.parameters["fit"], _below(MAP, arrays))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{files.directory} holds no fit ({error!r}); {REMEDY}") from error
    fit = replace(fit, preconditioner=served(fit.preconditioner))
    return StoredPart(fit, arrays.get(ROW_FACTORS), files.size_bytes)


def open_job(files: MappedFiles) -> FitJob:
    """The job whose state is in files, of a part or of a fit on its way. It copies the sums, which go on, and no more.
    Raises Corrupt."""
    facts = files.parameters
    try:
        plan = plan_of(facts["plan"] if "plan" in facts else facts["fit"]["plan"])
        return FitJob.restore(plan, _below(JOB, arrays_of(files)))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{files.directory} holds no state of a fit ({error!r}); {REMEDY}") from error


def _below(prefix: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
