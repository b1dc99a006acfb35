"""The server's configuration: one frozen value, read once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from covector.errors import InvalidInput
from covector_server.command_line import Parser
from covector_server.limits import Limits, memory_half_bytes
from covector_server.storage.store import Sizes


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a server is told. ``api_key`` None: no key is asked for; ``tls`` None: plain connections."""

    data: Path
    listen: str = "127.0.0.1:7337"
    api_key: str | None = None
    tls: tuple[Path, Path] | None = None  # certificate chain, private key
    limits: Limits = field(default_factory=Limits)
    scrub_bytes_per_s: int = 32 << 20  # how fast the scrubber reads; 0: not at all
    scrub_round_s_min: float = 60.0  # from the beginning of one round to that of the next, at the least
    sizes: Sizes = field(default_factory=Sizes)
    query_threads: int = 32  # that answer queries or wait with them
    scan_threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    ingest_threads: int = 2
    disk_low_water_bytes: int = 256 << 20  # kept free on the disk; 0 for none
    compact_share: float = 0.2  # of dead rows from which a checkpoint is compacted by itself; 0: never
    stop_grace_s: float = 10.0
    fit_memory_bytes: int = field(default_factory=memory_half_bytes)  # of one fit
    verbose: bool = False


def parse(arguments: list[str] | None = None) -> Config:
    """The configuration from command-line arguments and the environment (COVECTOR_API_KEY)."""
    given = _parser().parse_args(arguments)
    if (given.tls_cert is None) != (given.tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key go together")
    key = given.api_key_file.read_text().strip() if given.api_key_file else os.environ.get("COVECTOR_API_KEY")
    if given.api_key_file and not key:
        raise InvalidInput(f"{given.api_key_file} holds no key; write one into it, or leave --api-key-file out")
    if not (given.listen.startswith("unix:") or re.fullmatch(r".+:\d+", given.listen)):
        raise InvalidInput(f"--listen {given.listen}: write host:port, such as 127.0.0.1:7337, or unix:/path")
    if not 0 <= given.compact_share <= 1:
        raise InvalidInput(f"--compact-share {given.compact_share}: write a share from 0 to 1, 0 for never")
    return Config(
        data=given.data,
        listen=given.listen,
        api_key=key or None,
        tls=None if given.tls_cert is None else (given.tls_cert, given.tls_key),
        scrub_bytes_per_s=given.scrub_mib_per_s << 20,
        sizes=Sizes(shard_bytes=given.shard_mib << 20),
        query_threads=_positive("--query-threads", given.query_threads),
        scan_threads=_positive("--scan-threads", given.scan_threads),
        disk_low_water_bytes=_not_negative("--disk-low-water-mib", given.disk_low_water_mib) << 20,
        compact_share=given.compact_share,
        fit_memory_bytes=_positive_mib("--fit-memory-mib", given.fit_memory_mib) or memory_half_bytes(),
        verbose=given.verbose,
    )


def _not_negative(option: str, value: int) -> int:
    if value < 0:
        raise InvalidInput(f"{option} {value}: give 0 or more")
    return value


def _positive(option: str, value: int) -> int:
    if value < 1:
        raise InvalidInput(f"{option} {value}: give 1 or more")
    return value


def _positive_mib(option: str, value: int | None) -> int:
    """In bytes; 0 if nothing was given."""
    if value is not None and value < 1:
        raise InvalidInput(f"{option} {value}: give 1 or more")
    return (value or 0) << 20


def _parser() -> Parser:
    parser = Parser(
        prog="covector serve",
        description="Serve a data directory over gRPC until SIGTERM or SIGINT.",
        epilog="example: covector serve --data ./store --listen 127.0.0.1:7337",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the store is, or is to be")
    parser.add_argument(
        "--listen", default="127.0.0.1:7337", metavar="HOST:PORT", help="port 0 picks a free one; also unix:/path"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="clients must send this key")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM certificate chain")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM private key")
    parser.add_argument(
        "--scrub-mib-per-s",
        type=int,
        default=32,
        metavar="MIB",
        help="read to check what is stored (default 32, 0: off)",
    )
    parser.add_argument("--shard-mib", type=int, default=256, metavar="MIB", help="size of new shards (default 256)")
    parser.add_argument("--query-threads", type=int, default=32, metavar="N", help="queries at once (default 32)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--scan-threads", type=int, default=cores, metavar="N", help="threads that read rows (default: one a core)"
    )
    parser.add_argument(
        "--disk-low-water-mib", type=int, default=256, metavar="MIB", help="refuse rows when less is free (default 256)"
    )
    parser.add_argument(
        "--compact-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="compact a checkpoint by itself once this share of its rows is dead, 0 for never (default 0.2)",
    )
    parser.add_argument(
        "--fit-memory-mib", type=int, metavar="MIB", help="memory that a fit may take (default: half of the machine's)"
    )
    parser.add_argument("--verbose", action="store_true", help="log what the server does")
    return parser
