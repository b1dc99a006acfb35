"""Runs the Dockerfile's steps without Docker, in a temporary directory: ``check_image.py [SECONDS]``.

Every stage becomes a directory, COPY copies into it, RUN runs in it with a fresh virtual environment first on PATH, and
at the end ENTRYPOINT starts the server, HEALTHCHECK must find it serving within SECONDS (60), and SIGTERM must stop it
with exit status 0. So what the image needs and the COPY lines forget, or what an extra lacks, fails here. Left out are
the base image, and the steps that change the machine itself: users, volumes, ports.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENV", "LABEL"}
IMAGE_ADDRESS = "0.0.0.0:7337"
PROBE_ADDRESS = "127.0.0.1:7337"
READY = "listening on "


@dataclass
class Image:
    """The stand-in for an image being built: where its stages lie, and the commands it ends with."""

    top: Path
    environment: dict[str, str]
    stages: dict[str, Path] = field(default_factory=dict)
    stage: Path = Path()
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(word, rest) of every instruction, comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def enter_stage(image: Image, rest: str) -> None:
    """FROM base [AS name]: a fresh directory and a fresh environment."""
    name = rest.rsplit(maxsplit=1)[-1] if " AS " in rest.upper() else "final"
    image.stage = image.stages[name] = image.top / name
    image.stage.mkdir()
    venv.create(image.top / f"venv-{name}", with_pip=True)
    image.environment["PATH"] = f"{image.top / f'venv-{name}' / 'bin'}:{os.environ['PATH']}"


def copy(image: Image, rest: str) -> None:
    """COPY [--from=stage] source... target, into the stage's directory."""
    words = shlex.split(rest)
    source_root = ROOT
    if words[0].startswith("--from="):
        stage = words.pop(0).removeprefix("--from=")
        source_root = image.stages[stage]
        words[0] = str(Path(words[0]).relative_to("/build"))
    *sources, target = words
    for source in sources:
        origin, destination = source_root / source, image.stage / target
        if origin.is_dir():
            shutil.copytree(origin, destination, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, destination)


def run(image: Image, rest: str) -> None:
    """RUN command, by the shell; the steps that make users are left to a real build."""
    if not rest.startswith("useradd"):
        subprocess.run(["/bin/sh", "-ec", rest], cwd=image.stage, env=image.environment, check=True)


def build(image: Image) -> None:
    """Runs every instruction up to the entry point. Raises ValueError for one that this script does not know."""
    for word, rest in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if word == "FROM":
            enter_stage(image, rest)
        elif word == "COPY":
            copy(image, rest)
        elif word == "RUN":
            run(image, rest)
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        elif word == "HEALTHCHECK":
            image.health = json.loads(rest.partition("CMD ")[2])
        elif word not in SKIPPED | {"WORKDIR"}:
            raise ValueError(f"Dockerfile: {word} is new; teach scripts/check_image.py what it does")


def command(image: Image, words: list[str], places: dict[str, str]) -> list[str]:
    """``words`` with the image's places replaced by ours, the program looked up in the last environment."""
    program = shutil.which(words[0], path=image.environment["PATH"])
    if program is None:
        raise FileNotFoundError(f"the image has no program {words[0]!r}")
    return [program, *(places.get(word, word) for word in words[1:])]


def probe(image: Image, address: str, deadline_s: float) -> bool:
    """Whether the health check passes before the monotonic time ``deadline_s``."""
    words = command(image, image.health, {PROBE_ADDRESS: address})
    while time.monotonic() < deadline_s:
        done = subprocess.run(words, cwd=image.top, env=image.environment, capture_output=True, check=False)
        if done.returncode == 0:
            return True
    return False


def serve(image: Image, timeout_s: float) -> str | None:
    """Starts the server, probes it and stops it. Returns what went wrong, or None."""
    data = image.top / "data"
    data.mkdir()
    words = command(image, image.entrypoint, {"/data": str(data), IMAGE_ADDRESS: "127.0.0.1:0"})
    server = subprocess.Popen(words, cwd=data, env=image.environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    watchdog = threading.Timer(3 * timeout_s, server.kill)  # a server that hangs prints nothing and must not hang us
    watchdog.start()
    try:
        line = server.stdout.readline().strip()
        if not line.startswith(READY):
            return f"the entry point printed {line!r} where '{READY}HOST:PORT' was expected"
        if not probe(image, line.removeprefix(READY), time.monotonic() + timeout_s):
            return f"the health check did not pass within {timeout_s:g} s"
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout_s)
        return f"SIGTERM ended the server with exit status {status}" if status else None
    finally:
        watchdog.cancel()
        server.kill()
        server.wait()
        server.stdout.close()


def main() -> int:
    """Runs from the command line. Returns 0 if the image would serve, else 1."""
    timeout_s = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    # Quiet where pip talks about what it does, loud where it fails; nothing of the caller's environment leaks in.
    leaks = ("PYTHONPATH", "VIRTUAL_ENV", "COVECTOR_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(leaks)}
    with tempfile.TemporaryDirectory(prefix="covector-image-") as top:
        image = Image(Path(top), environment | {"PIP_QUIET": "2", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        try:
            build(image)
            problem = serve(image, timeout_s)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            problem = str(error)
    print(f"Dockerfile: {problem}" if problem else "Dockerfile: built, served, healthy, stopped")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
