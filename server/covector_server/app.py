"""The composition root: the one place that knows every part of the server and starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from covector.errors import Unavailable
from covector.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    collections_pb2,
    collections_pb2_grpc,
    fits_pb2,
    fits_pb2_grpc,
    indexes_pb2,
    indexes_pb2_grpc,
    ingest_pb2,
    operations_pb2,
    operations_pb2_grpc,
    query_pb2,
    query_pb2_grpc,
    rows_pb2,
    rows_pb2_grpc,
)
from covector_server.config import Config
from covector_server.fit.cache import FitCache
from covector_server.index.cache import IndexCache
from covector_server.ingest.committer import Committer
from covector_server.ingest.deleting import delete_rows
from covector_server.jobs.compact import Compactor
from covector_server.jobs.compaction import Rules
from covector_server.jobs.erase_postings import postings_eraser
from covector_server.jobs.fitting import Fitter
from covector_server.jobs.indexing import Indexer
from covector_server.jobs.maintenance import Maintenance
from covector_server.jobs.operations import Operations
from covector_server.jobs.postings import PostingsIndexer
from covector_server.jobs.scrub import Scrubber
from covector_server.limits import Limits
from covector_server.query.workers import Workers
from covector_server.rpc.admin import AdminParts, AdminServicer
from covector_server.rpc.authentication import ApiKeyInterceptor
from covector_server.rpc.collections import CollectionsServicer
from covector_server.rpc.fits import FitsServicer
from covector_server.rpc.indexes import IndexesServicer
from covector_server.rpc.ingest import IngestServicer
from covector_server.rpc.operations import OperationsServicer
from covector_server.rpc.query import QueryServicer
from covector_server.rpc.rows import RowsServicer
from covector_server.storage.disk import Disk
from covector_server.storage.snapshot import Snapshots
from covector_server.storage.space import FreeSpace
from covector_server.storage.store import Store
from covector_server.storage.view import CollectionView, RowIds

_log = logging.getLogger(__name__)
_MESSAGE_SLACK_BYTES = 64 << 10
_HTTP2_FRAME_BYTES = 4 << 20  # fewer, larger pieces of a message to join
SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (collections_pb2, "CollectionsService"),
        (ingest_pb2, "IngestService"),
        (query_pb2, "QueryService"),
        (rows_pb2, "RowsService"),
        (indexes_pb2, "IndexesService"),
        (fits_pb2, "FitsService"),
        (operations_pb2, "OperationsService"),
        (admin_pb2, "AdminService"),
    )
)


def grpc_options(limits: Limits) -> list[tuple[str, int]]:
    """How the gRPC server is set up."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes + _MESSAGE_SLACK_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.max_frame_size", _HTTP2_FRAME_BYTES),
    ]


class Server:
    """A running server. ``start`` opens the store and listens; ``stop`` loses nothing that was acknowledged."""

    def __init__(self, config: Config, disk: Disk | None = None) -> None:
        """disk: what the store writes through; None is the real one."""
        self._config = config
        self._store = Store(config.data, config.sizes, disk, limits=config.limits)
        self._space = FreeSpace(config.data, config.disk_low_water_bytes)
        self._snapshots = Snapshots(self._store, self._space)
        self._scrubber = Scrubber(
            self._store.catalog,
            config.data,
            self._store.damages,
            config.scrub_bytes_per_s,
            round_s_min=config.scrub_round_s_min,
        )
        self._maintenance = Maintenance(self._store)
        self._committer = Committer(self._store, config.limits, self._maintenance.seal, self._space.check)
        self._operations = Operations(self._store, self._committer, limits=config.limits)
        self._indexes = IndexCache(config.limits.index_cache_bytes)
        self._fits = FitCache(config.limits.fit_cache_bytes)
        self._indexer = Indexer(
            self._store,
            self._committer,
            self._operations,
            config.limits,
            fits=self._fits,
            forget=self._indexes.forget,
        )
        self._fitter = Fitter(
            self._store,
            self._committer,
            self._operations,
            config.limits,
            config.fit_memory_bytes,
            forget=self._forget,
        )
        self._compactor = Compactor(
            self._store,
            self._committer,
            self._operations,
            Rules(config.compact_share, config.limits.compact_readers_wait_s),
            erasers=[postings_eraser(self._store, lambda work: self._committer.call(work).result())],
            dead_bytes_min=config.limits.compact_dead_bytes_min,
            forget=self._forget,
        )
        self._queries = ThreadPoolExecutor(config.query_threads, thread_name_prefix="query")
        self._scanning = Workers(config.scan_threads)
        self._ingest = ThreadPoolExecutor(config.ingest_threads, thread_name_prefix="ingest")
        self._writers = IngestServicer(self._store, self._committer, self._ingest, config.limits)
        self._asking = QueryServicer(
            lambda name: self._store.collection(name).reading(),
            self._queries,
            config.limits,
            self._scanning,
            self._indexes,
            self._fits,
        )
        self._health = health.aio.HealthServicer()
        self._grpc = self._make_grpc_server()

    async def start(self) -> str:
        """Listens, and returns the address."""
        listen = self._config.listen
        try:
            port = self._add_port(listen)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {listen}: {error}; is the port taken?") from error
        indexer = PostingsIndexer(self._store, self._committer, self._config.limits)
        steps = [self._compactor.step, indexer.step, self._indexer.step, self._fitter.step]
        self._maintenance.start(self._committer, steps, self._scrubber.step)
        await self._grpc.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Ends streams with a clear status, commits what is queued, publishes partial shards, closes the files.

        Takes up to five seconds where idle clients are connected: they look at their sockets that rarely, and a
        connection that is not waited for ends with a warning on the client's stderr.
        """
        self._writers.stop()
        await self._health.enter_graceful_shutdown()
        await self._grpc.stop(self._config.stop_grace_s)
        await asyncio.to_thread(self._stop_threads)

    def _stop_threads(self) -> None:
        self._operations.stop()
        self._maintenance.stop()
        self._committer.stop()
        self._queries.shutdown(wait=True, cancel_futures=True)
        self._asking.close()
        self._scanning.close()
        self._ingest.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    def _forget(self, directory: Path) -> None:
        """Lets go of what is open of an index or a fit that goes."""
        self._indexes.forget(directory)
        self._fits.forget(directory)

    def _make_grpc_server(self) -> grpc.aio.Server:
        limits, api_key = self._config.limits, self._config.api_key
        server = grpc.aio.server(
            interceptors=[] if api_key is None else [ApiKeyInterceptor(api_key)],
            options=grpc_options(limits),
        )
        self._add_services(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _add_services(self, server: grpc.aio.Server) -> None:
        store, committer, limits = self._store, self._committer, self._config.limits

        def open_view(name: str) -> AbstractContextManager[CollectionView]:
            return store.collection(name).reading()

        async def delete(name: str, row_ids: RowIds, request_id: str) -> int:
            work = lambda: delete_rows(store, store.collection(name), row_ids, request_id)  # noqa: E731
            return await asyncio.wrap_future(committer.call(work))

        collections_pb2_grpc.add_CollectionsServiceServicer_to_server(
            CollectionsServicer(store, committer, self._operations, limits, self._compactor), server
        )
        server.add_generic_rpc_handlers((self._writers.handlers(),))
        query_pb2_grpc.add_QueryServiceServicer_to_server(self._asking, server)
        rows = RowsServicer(open_view, self._queries, self._asking.admission, limits, delete)
        rows_pb2_grpc.add_RowsServiceServicer_to_server(rows, server)
        indexes_pb2_grpc.add_IndexesServiceServicer_to_server(IndexesServicer(self._indexer, limits), server)
        fits_pb2_grpc.add_FitsServiceServicer_to_server(FitsServicer(self._fitter, open_view, limits), server)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(
            OperationsServicer(self._operations, limits), server
        )
        parts = AdminParts(store, self._snapshots, self._operations, self._space, limits, store.damages, self._scrubber)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(parts), server)

    def _add_port(self, listen: str) -> int:
        if self._config.tls is None:
            return int(self._grpc.add_insecure_port(listen))
        certificate, key = (path.read_bytes() for path in self._config.tls)
        return int(self._grpc.add_secure_port(listen, grpc.ssl_server_credentials([(key, certificate)])))


async def serve(config: Config, disk: Disk | None = None) -> None:
    """Serves until SIGTERM or SIGINT; prints one line when ready."""
    server = Server(config, disk)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    address = await server.start()
    print(f"listening on {address}", flush=True)
    await stop.wait()
    _log.info("stopping")
    await server.stop()
