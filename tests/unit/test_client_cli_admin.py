"""delete, compact, snapshot, status and ``query --damaged`` at the command line, against a server whose calls follow a
script: what is asked of the server, what is printed, what is returned."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.scripted_calls import Answers, described, scripted
from tests.unit.test_client_admin import DAMAGE, done, keys_in, running

from covector.cli import main
from covector.errors import AlreadyExists, NotFound
from covector.operation import Operation
from covector.v1 import admin_pb2, collections_pb2, operations_pb2, query_pb2, rows_pb2

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against a server with these answers."""

    def run_command(answers: Answers, *arguments: object) -> tuple[int, str, str]:
        with scripted(answers) as address:
            monkeypatch.setenv("COVECTOR_ADDRESS", address)
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


class Deletions:
    """Counts a row deleted for each key, five for a filter, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[rows_pb2.DeleteRowsRequest] = []

    @property
    def answers(self) -> Answers:
        return {"DeleteRows": self._delete, "CountRows": self._count}

    def _delete(self, request: rows_pb2.DeleteRowsRequest) -> rows_pb2.DeleteRowsResponse:
        self.requests.append(request)
        known = [key for key in keys_in(request) if key != "9"] if request.HasField("keys") else range(5)
        return rows_pb2.DeleteRowsResponse(row_count=len(known))

    def _count(self, request: rows_pb2.CountRowsRequest) -> rows_pb2.CountRowsResponse:
        return rows_pb2.CountRowsResponse(row_count=5 if request.where_json else 1_000)


def test_deleting_typed_keys(run: Run) -> None:
    server = Deletions()
    assert run(server.answers, "delete", "c", "--key", "a", "--key", "7") == (0, "2 rows deleted from c\n", "")
    assert run(server.answers, "delete", "c", "--key", "7", "--integer-keys", "--json")[:2] == (0, '{"deleted": 1}\n')
    assert [keys_in(request) for request in server.requests] == [["a", "7"], [7]]
    status, out, err = run(server.answers, "delete", "c", "--key", "9")
    assert (status, out) == (0, "0 rows deleted from c\n")
    assert "--integer-keys takes them as integers" in err
    status, _, err = run(server.answers, "delete", "c", "--key", "1.5", "--integer-keys")
    assert (status, "key '1.5' is no integer" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "options", "keys"),
    [
        ("keys.txt", "a\r\nb \n\n7\n", [], ["a", "b ", "7"]),
        ("keys.txt", "3\n-7\n", ["--integer-keys"], [3, -7]),
        ("rows.jsonl", '{"key": "a", "text": "t"}\n{"key": 7}\n', [], ["a", 7]),
    ],
)
def test_deleting_the_keys_of_a_file(
    run: Run, tmp_path: Path, name: str, content: str, options: list[str], keys: list[Any]
) -> None:
    server = Deletions()
    (tmp_path / name).write_bytes(content.encode())
    status, out, _ = run(server.answers, "delete", "c", "--keys-file", tmp_path / name, *options)
    assert (status, out) == (0, f"{len(keys)} rows deleted from c\n")
    assert [key for request in server.requests for key in keys_in(request)] == keys


def test_a_bad_line_deletes_nothing(run: Run, tmp_path: Path) -> None:
    server = Deletions()
    (tmp_path / "rows.jsonl").write_text('{"key": "a"}\n{"kee": 7}\n')
    status, _, err = run(server.answers, "delete", "c", "--keys-file", tmp_path / "rows.jsonl")
    assert status == 2
    assert "rows.jsonl, line 2 has no field 'key'" in err
    assert server.requests == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_a_terminal_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, status: int) -> None:
    server = Deletions()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    found, out, err = run(server.answers, "delete", "c", "--where", '{"a": 1}')
    assert found == status
    assert "delete 5 rows of the 1,000 rows of c? [y/N]" in err
    assert out == ("5 rows deleted from c\n" if status == 0 else "")
    assert [request.where_json for request in server.requests] == (['{"a": 1}'] if status == 0 else [])


def test_yes_asks_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(""))
    status, out, err = run(Deletions().answers, "delete", "c", "--where", "{}", "--yes")
    assert (status, out, err) == (0, "5 rows deleted from c\n", "")


@pytest.mark.parametrize("arguments", [[], ["--key", "a", "--where", "{}"], ["--where", "[]"], ["--where", "{"]])
def test_wrong_deletions(run: Run, arguments: list[str]) -> None:
    server = Deletions()
    status, out, err = run(server.answers, "delete", "c", *arguments)
    assert (status, out, server.requests) == (2, "", [])
    assert err.startswith("covector: error: ")


def waits(result: str) -> Callable[..., Any]:
    return lambda request: operations_pb2.WaitOperationResponse(operation=done(request.id, result))


def test_compact(run: Run) -> None:
    answers: Answers = {
        "CompactCollection": lambda request: collections_pb2.CompactCollectionResponse(operation=running("compact")),
        "WaitOperation": waits('{"row_count": 1234, "snapshots": ["monday", "friday"]}'),
    }
    status, out, err = run(answers, "compact", "c")
    assert (status, out) == (0, "c is compacted: row count 1,234, snapshots monday, friday\n")
    assert err.startswith("compact")
    assert json.loads(run(answers, "compact", "c", "--json")[1])["snapshots"] == ["monday", "friday"]


def test_leaving_the_wait_leaves_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(operation: Operation, deadline_s: float | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Operation, "_wait_once", interrupted)
    answers: Answers = {
        "CompactCollection": lambda request: collections_pb2.CompactCollectionResponse(operation=running("compact"))
    }
    status, out, err = run(answers, "compact", "c")
    assert (status, out, err) == (130, "", "covector: error: interrupted; operation op-1 goes on at the server\n")


def test_an_operation_that_fails_is_an_error(run: Run) -> None:
    failed = operations_pb2.Operation(
        id="op", state=operations_pb2.OPERATION_STATE_FAILED, error_kind="limit_exceeded", error_message="disk is full"
    )
    answers: Answers = {
        "CompactCollection": lambda request: collections_pb2.CompactCollectionResponse(operation=failed)
    }
    status, out, err = run(answers, "compact", "c")
    assert (status, out, err) == (2, "", "covector: error: disk is full\n")


class Snapshots:
    def __init__(self) -> None:
        self.names = ["monday"]

    @property
    def answers(self) -> Answers:
        return {
            "CreateSnapshot": self._create,
            "ListSnapshots": self._list,
            "DeleteSnapshot": self._delete,
            "WaitOperation": waits("{}"),
        }

    def _create(self, request: admin_pb2.CreateSnapshotRequest) -> admin_pb2.CreateSnapshotResponse:
        if request.name in self.names:
            raise AlreadyExists(f"there is a snapshot {request.name!r}; choose another name")
        self.names.append(request.name)
        return admin_pb2.CreateSnapshotResponse(operation=running("snapshot"))

    def _list(self, request: admin_pb2.ListSnapshotsRequest) -> admin_pb2.ListSnapshotsResponse:
        found = [
            admin_pb2.Snapshot(name=name, path=f"snapshots/{name}", created_at_s=0, row_count=9, size_bytes=3 << 20)
            for name in self.names
        ]
        return admin_pb2.ListSnapshotsResponse(snapshots=found)

    def _delete(self, request: admin_pb2.DeleteSnapshotRequest) -> admin_pb2.DeleteSnapshotResponse:
        if request.name not in self.names:
            raise NotFound(f"no snapshot {request.name!r}; did you mean 'monday'?")
        self.names.remove(request.name)
        return admin_pb2.DeleteSnapshotResponse()


def test_snapshots(run: Run) -> None:
    answers = Snapshots().answers
    status, out, _ = run(answers, "snapshot", "create", "friday")
    assert (status, out) == (0, "snapshot friday is made at snapshots/friday: 9 rows, 3.0 MiB\n")
    status, out, _ = run(answers, "snapshot", "list")
    assert [line.split()[0] for line in out.splitlines()] == ["name", "monday", "friday"]
    assert "1970-01-01 00:00:00 UTC" in out
    assert [entry["name"] for entry in json.loads(run(answers, "snapshot", "list", "--json")[1])] == [
        "monday",
        "friday",
    ]
    assert run(answers, "snapshot", "delete", "friday")[:2] == (0, "snapshot friday is deleted\n")
    status, _, err = run(answers, "snapshot", "create", "monday")
    assert (status, "choose another name" in err) == (2, True)
    status, _, err = run(answers, "snapshot", "delete", "munday")
    assert (status, "did you mean 'monday'" in err) == (2, True)
    assert run(answers, "snapshot", "delete", "monday")[0] == 0
    assert run(answers, "snapshot", "list")[1].startswith("no snapshots yet; make one")


@pytest.mark.parametrize("arguments", [[], ["make"], ["create"], ["list", "x"]])
def test_wrong_use_of_snapshot(run: Run, arguments: list[str]) -> None:
    status, out, err = run({}, "snapshot", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("covector: error: ")


@pytest.mark.parametrize("command", ["create", "list", "delete"])
def test_help_of_the_snapshot_commands(run: Run, command: str) -> None:
    status, out, _ = run({}, "snapshot", command, "--help")
    assert status == 0
    assert f"example: covector snapshot {command}" in out


def test_status(run: Run) -> None:
    well = admin_pb2.GetStatusResponse(version="0.2", format_version=2, disk_free_bytes=5 << 30, scrubbed_bytes=100)
    status, out, _ = run({"GetStatus": lambda request: well}, "status")
    assert status == 0
    assert out.splitlines() == [
        "covector 0.2, store format 2",
        "disk: 5.0 GiB free, low-water mark 0 bytes",
        "scrubber: 100 bytes checked in this round, 0 rounds done",
        "all is well",
    ]
    ill = admin_pb2.GetStatusResponse(disk_free_bytes=1, disk_low_water_bytes=2, scrub_total_bytes=1 << 20)
    ill.read_only_collections.add(collection="c", reason="a sync failed; restart the server")
    ill.damages.add(collection="d", damage=DAMAGE)
    status, out, _ = run({"GetStatus": lambda request: ill}, "status")
    assert status == 1
    assert out.splitlines()[1:] == [
        "disk: 1 bytes free, low-water mark 2 bytes: below it, no rows are taken",
        "scrubber: 0 bytes of 1.0 MiB checked in this round, 0 rounds done",
        "c takes no rows: a sync failed; restart the server",
        "d is damaged: 7 rows at e1: collections/1/gradients: chunk 3 is damaged",
    ]
    status, out, _ = run({"GetStatus": lambda request: ill}, "status", "--json")
    assert (status, json.loads(out)["healthy"], json.loads(out)["damages"]["d"][0]["row_count"]) == (1, False, 7)


def test_what_a_query_left_out_is_printed(run: Run, tmp_path: Path) -> None:
    def answer(request: query_pb2.QueryOnceRequest) -> query_pb2.QueryOnceResponse:
        assert request.spec.query.damaged == query_pb2.DAMAGED_ROWS_OMIT
        hit = query_pb2.Hit(key=b"\x02a", score=1)
        return query_pb2.QueryOnceResponse(
            summary=query_pb2.QuerySummary(result_count=1, scorer="dot", damages=[DAMAGE]),
            hits=[query_pb2.ResultHits(proponents=[hit], opponents=[hit])],
        )

    np.save(tmp_path / "q.npy", np.ones(3))
    query = ["query", "c", "--vector", tmp_path / "q.npy", "--damaged", "omit"]
    status, out, _ = run({"QueryOnce": answer}, *query)
    assert status == 0
    assert out.splitlines()[1] == "left out as damaged: 7 rows at e1: collections/1/gradients: chunk 3 is damaged"
    _, out, _ = run({"QueryOnce": answer}, *query, "--json")
    assert json.loads(out)["damages"][0]["checkpoint"] == "e1"


def test_collections_tell_of_dead_rows(run: Run) -> None:
    checkpoint = collections_pb2.Checkpoint(name="e1", dead_row_count=4)
    answers: Answers = {
        "ListCheckpoints": lambda request: collections_pb2.ListCheckpointsResponse(checkpoints=[checkpoint]),
        "GetCollection": lambda request: collections_pb2.GetCollectionResponse(
            collection=described(deleted_row_count=3)
        ),
        **Deletions().answers,
    }
    (entry,) = json.loads(run(answers, "collections", "--json")[1])
    assert (entry["deleted_rows"], entry["checkpoints"][0]["dead_rows"]) == (3, 4)
