"""How fast fits are learnt, beside what the processor's matrix product allows; and what A costs a query.

    python -m benchmarks.fits

Rates are MB of stored float16 gradients per CPU-second. The bound is sgemm alone on the same shapes, rows^T rows with
the whole of the result made: 2 k^2 operations a row. (Only half of a symmetric result need be made, so more than 1.0 of
the bound is possible.) Written are benchmarks/results/fits.{json,md}. Run it on an idle machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.ingest_report import machine

from covector.attribution import FitJob, fit, plan_fit
from covector.attribution.rows import ArrayBlock
from covector.attribution.sums import batch_row_count
from covector.types import Space

RESULTS = Path(__file__).parent / "results" / "fits"
ROUNDS = 3
KINDS: dict[str, dict] = {"dense": {}, "dense, float64 products": {"damping": 0.001}, "rank 256": {"rank": 256}}


def main() -> None:
    lines = []
    for dim in (512, 1024, 4096):
        bound = gemm_bound(dim)
        for name, options in KINDS.items():
            if dim <= 512 and "rank" in options:
                continue
            rate = fit_rate(dim, options)
            lines.append({"dim": dim, "fit": name, "mb_per_cpu_s": rate, "bound": bound, "share": rate / bound})
            print(f"dim {dim:5}  {name:24} {rate:7.1f} MB per CPU-second, {rate / bound:.2f} of sgemm's", flush=True)
    costs = [query_cost(4096, options) for options in ({}, {"rank": 256})]
    report(lines, costs)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of all threads, the least of some rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def wall_s(work: Callable[[], object], rounds: int = 7) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def gemm_bound(dim: int) -> float:
    rows = np.random.default_rng(0).standard_normal((batch_row_count(dim), dim), dtype=np.float32)
    other, result = rows.copy(), np.empty((dim, dim), np.float32)
    repeats = max(1, (1 << 36) // (2 * len(rows) * dim * dim))

    def work() -> None:
        for _ in range(repeats):
            np.matmul(rows.T, other, out=result)

    return repeats * len(rows) * dim * 2 / 1e6 / cpu_s(work)


def fit_rate(dim: int, options: dict) -> float:
    """All passes, the finish left out: it does not grow with the rows."""
    count = batch_row_count(dim)
    rows = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32).astype(np.float16)
    block = ArrayBlock(rows, np.ones(count, np.float32), np.full(count, np.nan))
    plan = plan_fit("influence", Space(dim=dim), 10 * count, **options)
    repeats = max(1, (1 << 35) // (2 * count * dim * dim))
    spent = []
    for _ in plan.stages:
        job = FitJob(plan)
        while job.stage_number < len(spent):
            job.update(block)
            job.end_pass()

        def work(job: FitJob = job) -> None:
            for _ in range(repeats):
                job.update(block)

        work()
        spent.append(cpu_s(work))
    return repeats * count * dim * 2 / 1e6 / sum(spent)


def query_cost(dim: int, options: dict) -> dict:
    """One query: A q beside the products with a GiB of rows, as numpy's sgemv reads a GiB."""
    rng = np.random.default_rng(0)
    learnt = fit("influence", rng.standard_normal((1024, dim)), **options)
    scorer = next(iter(learnt.parts.values())).scorer()
    query = rng.standard_normal((1, dim))
    scorer.prepare(query)
    memory = rng.standard_normal(((1 << 30) // 4 // dim, dim), dtype=np.float32)
    vector = rng.standard_normal(dim, dtype=np.float32)
    scan_s = wall_s(lambda: memory @ vector)
    time.sleep(0.2)  # the threads of the product before are asleep again
    prepare_s = wall_s(lambda: scorer.prepare(query), 50)
    found = {
        "dim": dim,
        "fit": "rank 256" if options else "dense",
        "prepare_ms": prepare_s * 1e3,
        "scan_ms": scan_s * 1e3,
    }
    print(f"A q by {found['fit']}: {prepare_s * 1e3:.2f} ms; a GiB of rows is read in {scan_s * 1e3:.1f} ms")
    return found


def report(lines: list[dict], costs: list[dict]) -> None:
    RESULTS.with_suffix(".json").write_text(
        json.dumps({"rates": lines, "query": costs, "machine": machine()}, indent=1) + "\n", encoding="utf-8"
    )
    text = [
        "# How fast fits are learnt", "",
        "Made by `python -m benchmarks.fits`. MB of stored float16 gradients per CPU-second, over all passes; the",
        "bound is sgemm with the whole of the symmetric result made.", "",
        "| dim | fit | MB per CPU-second | sgemm | share |", "|---|---|---|---|---|",
        *("| {dim} | {fit} | {mb_per_cpu_s:.1f} | {bound:.1f} | {share:.2f} |".format(**line) for line in lines),
        "", "| A q of one query | ms | a GiB of float32 rows times it, ms |", "|---|---|---|",
        *("| {fit}, dim {dim} | {prepare_ms:.2f} | {scan_ms:.1f} |".format(**cost) for cost in costs),
    ]  # fmt: skip
    RESULTS.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
