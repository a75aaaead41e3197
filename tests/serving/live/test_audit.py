"""The audit log: chained, torn lines repaired, nothing lost by kill -9, tampering noticed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvfoul.errors import ConfigError
from serving.live.audit import HEAD, LINES, QUARANTINE, AuditError, AuditLog, verify
from serving.live.clips import RETENTION, ClipStore, clip_faults

WRITER = """
import sys
from pathlib import Path
from serving.live.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
for i in range(100_000):
    entry = log.append("decision", {"i": i, "fill": "x" * 3000})
    sys.stdout.write(f"{entry.n} {entry.sha256}\\n")
    sys.stdout.flush()
"""


def _filled(directory: Path, lines: int = 4) -> bytes:
    log = AuditLog(directory)
    for i in range(lines):
        log.append("decision", {"i": i, "label": "Dive", "p": 0.25})
    log.close()
    return (directory / LINES).read_bytes()


def test_an_untouched_log_is_whole_and_reads_back(tmp_path: Path) -> None:
    _filled(tmp_path)
    log = AuditLog(tmp_path)
    assert [entry.data["i"] for entry in log.entries()] == [0, 1, 2, 3]
    assert verify(tmp_path).faults == ()
    assert verify(tmp_path).head == log.head[1]
    log.close()


def test_a_second_process_on_one_directory_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    with pytest.raises(ConfigError, match="in use by another process"):
        AuditLog(tmp_path)
    log.close()
    AuditLog(tmp_path).close()


@settings(max_examples=40)
@given(data=st.data())
def test_any_changed_removed_doubled_or_exchanged_line_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("audit")
    whole = _filled(directory)
    lines = whole.splitlines(keepends=True)
    i = data.draw(st.integers(0, 3))
    kind = data.draw(st.sampled_from(["byte", "remove", "double", "exchange", "cut"]))
    if kind == "byte":
        at = data.draw(st.integers(0, 1 << 20)) % len(whole)
        changed = whole[:at] + bytes([(whole[at] + data.draw(st.integers(1, 255))) % 256]) + whole[at + 1 :]
    elif kind == "remove":
        changed = b"".join(lines[:i] + lines[i + 1 :])
    elif kind == "double":
        changed = b"".join([*lines[: i + 1], *lines[i:]])
    elif kind == "exchange":
        j = data.draw(st.integers(0, 3).filter(lambda value: value != i))
        lines[i], lines[j] = lines[j], lines[i]
        changed = b"".join(lines)
    else:
        changed = whole[: data.draw(st.integers(0, 1 << 20)) % len(whole)]
    (directory / LINES).write_bytes(changed)
    assert verify(directory).faults, kind
    with pytest.raises(AuditError, match="start with another --audit-dir"):
        AuditLog(directory)


def test_a_log_written_anew_with_its_head_is_noticed_against_a_noted_head(tmp_path: Path) -> None:
    _filled(tmp_path / "a")
    noted = verify(tmp_path / "a").head
    _filled(tmp_path / "b", lines=9)
    assert not verify(tmp_path / "b").faults
    assert verify(tmp_path / "b", expect=noted).faults
    assert not verify(tmp_path / "a", expect=noted).faults


def test_a_removed_head_file_is_noticed(tmp_path: Path) -> None:
    _filled(tmp_path)
    (tmp_path / HEAD).unlink()
    assert "no head.json" in verify(tmp_path).faults[0]


@pytest.mark.parametrize("lines", [1, 3])
def test_lines_cut_off_together_with_the_head_are_noticed(tmp_path: Path, lines: int) -> None:
    whole = _filled(tmp_path)
    (tmp_path / HEAD).unlink()
    (tmp_path / LINES).write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
    assert "no head.json" in verify(tmp_path).faults[0]
    with pytest.raises(AuditError, match=r"no head\.json"):
        AuditLog(tmp_path)


def test_a_log_without_a_line_has_its_head_already(tmp_path: Path) -> None:
    AuditLog(tmp_path).close()
    assert (verify(tmp_path).lines, verify(tmp_path).faults) == (0, ())
    AuditLog(tmp_path).close()
    (tmp_path / HEAD).unlink()
    assert verify(tmp_path).faults


def test_a_torn_line_that_the_head_knows_stays_where_it_is_as_evidence(tmp_path: Path) -> None:
    cut = _filled(tmp_path)[:-20]
    (tmp_path / LINES).write_bytes(cut)
    with pytest.raises(AuditError, match="lines were removed at the end"):
        AuditLog(tmp_path)
    assert (tmp_path / LINES).read_bytes() == cut
    assert not (tmp_path / QUARANTINE).exists()


def test_a_log_that_one_read_does_not_return_whole_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux returns 2 GiB less a page at most; here it is 100 bytes."""
    whole = _filled(tmp_path)
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read(fd, min(size, 100), offset))
    log = AuditLog(tmp_path)
    assert (log.repaired, (tmp_path / LINES).read_bytes()) == ("", whole)
    log.close()
    torn = b"{" * 250
    (tmp_path / LINES).write_bytes(whole + torn)
    AuditLog(tmp_path).close()
    assert (tmp_path / LINES).read_bytes() == whole
    assert next((tmp_path / QUARANTINE).iterdir()).read_bytes() == torn


@pytest.mark.parametrize("torn", [b'{"at_s": 17', b"\0" * 600, b"\0" * 40 + b"\n"])
def test_a_torn_last_line_is_moved_away_and_the_log_goes_on(tmp_path: Path, torn: bytes) -> None:
    whole = _filled(tmp_path)
    (tmp_path / LINES).write_bytes(whole + torn)
    log = AuditLog(tmp_path)
    assert "half written" in log.repaired
    assert next((tmp_path / QUARANTINE).iterdir()).read_bytes() == torn
    assert log.append("decision", {"i": 4}).n == 5
    log.close()
    assert verify(tmp_path).faults == ()


def test_kill_9_at_any_moment_loses_no_finished_line(tmp_path: Path, repo_root: Path) -> None:
    finished: list[str] = []
    for round_ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(repo_root)},
        )
        first = writer.stdout.readline()
        time.sleep(0.003 + 0.011 * round_)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        # A last line of output without its newline was not finished.
        finished += [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]
        log = AuditLog(tmp_path)
        on_disk = [f"{entry.n} {entry.sha256}\n" for entry in log.entries()]
        log.close()
        assert [line for line in finished if line not in on_disk] == []
        assert verify(tmp_path).faults == ()
    assert len(finished) > 8


def test_a_full_disk_refuses_the_line_and_the_log_stays_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append("decision", {"i": 0})
    size = (tmp_path / LINES).stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, old[1]))
    try:
        with pytest.raises(AuditError, match="cannot write"):
            log.append("decision", {"fill": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert verify(tmp_path).faults == ()
    assert log.append("decision", {"i": 1}).n == 2
    log.close()
    assert verify(tmp_path).lines == 2


def test_clips_leave_by_policy_and_the_log_still_proves_them(tmp_path: Path) -> None:
    log, store = AuditLog(tmp_path), ClipStore(tmp_path)
    names = [store.put(bytes([i]) * 1000) for i in range(3)]
    for i, name in enumerate(names):
        os.utime(tmp_path / "clips" / f"{name}.mp4", (1000 + i, 1000 + i))
        log.append("decision", {"clips": [{"sha256": name, "kept": True}]})
    gone = store.expired(max_age_s=1e12, max_bytes=2500)
    assert gone == [names[0]]
    store.remove(gone)
    assert clip_faults(tmp_path)[0], "removed, but the log does not say so"
    log.append(RETENTION, {"removed": gone})
    assert clip_faults(tmp_path) == ([], 2, 1)
    assert store.get(names[0]) is None
    assert store.get(names[1]) == b"\1" * 1000
    log.close()


def test_the_command_tells_a_whole_log_from_a_broken_one(tmp_path: Path, run_module) -> None:
    whole = _filled(tmp_path)
    done = run_module("serving.live.audit", "verify", str(tmp_path))
    assert (done.returncode, "whole: 4 lines" in done.stdout) == (0, True), done.stderr
    (tmp_path / LINES).write_bytes(whole.replace(b'"Dive"', b'"Push"', 1))
    done = run_module("serving.live.audit", "verify", str(tmp_path))
    assert (done.returncode, "BROKEN: line 1" in done.stdout) == (1, True), done.stderr
    assert json.loads(whole.splitlines()[0])["data"]["i"] == 0


def test_a_log_that_is_being_written_is_whole_to_the_command(tmp_path: Path, run_module, repo_root: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    writer = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        while not (tmp_path / HEAD).exists():
            time.sleep(0.01)
        done = run_module("serving.live.audit", "verify", str(tmp_path))
    finally:
        writer.kill()
        writer.wait()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_clip_is_named(tmp_path: Path) -> None:
    log, store = AuditLog(tmp_path), ClipStore(tmp_path)
    name = store.put(b"clip")
    log.append("decision", {"clips": [{"sha256": name, "kept": True}]})
    log.close()
    (tmp_path / "clips" / f"{name}.mp4").write_bytes(b"another")
    assert "was changed" in clip_faults(tmp_path)[0][0]


def test_a_clip_that_is_kept_again_counts_from_then(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    name = store.put(b"clip")
    os.utime(tmp_path / "clips" / f"{name}.mp4", (1000, 1000))
    assert store.expired(max_age_s=60, max_bytes=1000) == [name]
    store.put(b"clip")
    assert store.expired(max_age_s=60, max_bytes=1000) == []


def test_half_a_clip_of_a_killed_process_is_removed_at_the_start(tmp_path: Path) -> None:
    name = ClipStore(tmp_path).put(b"clip")
    half = tmp_path / "clips" / f".{name}.140213"
    half.write_bytes(b"cl")
    assert ClipStore(tmp_path).get(name) == b"clip"
    assert not half.exists()


def test_a_clip_is_on_disk_with_its_name_before_it_counts_as_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(fd: int) -> None:
        sync(fd)
        done.append(Path(f"/proc/self/fd/{fd}").readlink().name.split(".")[0])

    def note_rename(source: Path, target: Path) -> None:
        replace(source, target)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    ClipStore(tmp_path).put(b"clip")
    assert done[-2:] == ["renamed", "clips"]
