"""Clients that search at the same time, each with a connection of its own; for search.py.

    python benchmarks/search_clients.py HOST:PORT CLIENTS QUERIES

Says "ready", then for each line of standard input lets every client ask QUERIES times, one vector each, and prints how
many queries a second were answered.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

import covector


def main() -> None:
    address, client_count, query_count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with ExitStack() as opened:
        clients = [opened.enter_context(covector.connect(address, timeout_s=300)) for _ in range(client_count)]
        collections = [client.collections()[0] for client in clients]
        randoms = [np.random.default_rng(number) for number in range(client_count)]

        def ask(number: int) -> None:
            dim = collections[number].space.dim
            for _ in range(query_count):
                collections[number].query(randoms[number].standard_normal(dim, dtype=np.float32), k=10)

        with ThreadPoolExecutor(client_count) as pool:
            print("ready", flush=True)
            for _ in sys.stdin:
                started_s = time.perf_counter()
                list(pool.map(ask, range(client_count)))
                print(client_count * query_count / (time.perf_counter() - started_s), flush=True)


if __name__ == "__main__":
    main()
