"""The download against a real server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pyzipper

from mvfoul.errors import ConfigError, DownloadError
from training.annotations import load_annotations
from training.download.config import REPOSITORY, DownloadConfig
from training.download.fetch import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^?]+)")


@dataclass
class Hub:
    """What the server serves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    """Where another hash than the file's own is to be told."""
    cut_after: int | None = None
    """Bytes after which the next transfer ends without a word; once."""
    stall_after: int | None = None
    """Bytes after which transfers wait."""
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    gets: list[tuple[str, str | None]] = field(default_factory=list)
    """(file, Range) of every transfer."""
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""


def _handler(hub: Hub):  # noqa: C901
    class Handler(http.server.BaseHTTPRequestHandler):
        def _head(self):
            hub.tokens.add(self.headers.get("Authorization"))
            match = PATH.fullmatch(self.path)
            if match is None or match["repo"] != REPOSITORY:
                return self._refuse("RepoNotFound", 401)
            if match["revision"] not in ("main", COMMIT):
                return self._refuse("RevisionNotFound", 404)
            if match["name"] not in hub.files:
                return self._refuse("EntryNotFound", 404)
            return match["name"]

        def _refuse(self, code, status):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _facts(self, name, length):
            content = hub.files[name]
            etag = hub.sha256.get(name) or hashlib.sha256(content).hexdigest()
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def do_HEAD(self):
            if (name := self._head()) is not None:
                self.send_response(200)
                self._facts(name, len(hub.files[name]))

        def do_GET(self):
            if (name := self._head()) is None:
                return
            asked = self.headers.get("Range")
            hub.gets.append((name, asked))
            content = hub.files[name]
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self._facts(name, len(content) - start)
            self._send(content[start:])

        def _send(self, content):
            cut, hub.cut_after = hub.cut_after, None
            if cut is not None:
                self.wfile.write(content[:cut])
                self.close_connection = True
                return
            if hub.stall_after is not None:
                self.wfile.write(content[: hub.stall_after])
                self.wfile.flush()
                hub.stalled.set()
                hub.release.wait(30)
                content = content[hub.stall_after :]
            with suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def hub(monkeypatch):
    served = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("HF_TOKEN", "SOCCERNET_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    yield served
    served.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def split_files(split="train", actions=2):
    clips = {f"action_{n}/clip_{k}.mp4": f"{split} {n} {k} ".encode() * 500 for n in range(actions) for k in (0, 1)}
    fields = {"Offence": "Offence", "Action class": "Tackling", "Severity": "3.0"}
    listed = {
        str(n): {**fields, "Clips": [{"Url": f"Dataset/Train/action_{n}/clip_{k}"} for k in (0, 1)]}
        for n in range(actions)
    }
    return {"annotations.json": json.dumps({"Set": split, "Actions": listed}).encode(), **clips}


def zipped(files, folder=""):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{name}", content)
    return memory.getvalue()


def config(hub, out, **changes):
    return DownloadConfig(**{"out": out, "splits": ("train",), "endpoint": hub.url, **changes})


def content_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def work_of(out):
    """What unfinished work there is, records aside."""
    return sorted(p.name for p in (out / ".download").iterdir() if p.suffix != ".json" and p.name != "lock")


def test_every_split_comes_into_its_own_folder_and_training_can_read_it(hub, tmp_path, capsys):
    splits = ("train", "valid", "test", "challenge")
    hub.files = {f"{split}.zip": zipped(split_files(split)) for split in splits}
    fetch(config(hub, tmp_path / "data", splits=splits))
    for split in splits:
        assert content_of(tmp_path / "data" / split) == split_files(split)
    assert [record.action_id for record in load_annotations(tmp_path / "data", "train").records] == ["0", "1"]
    said = capsys.readouterr().out
    assert f"python -m training.check-data --root {tmp_path / 'data'}" in said
    assert work_of(tmp_path / "data") == []
    assert not list((tmp_path / "data").glob("*.zip"))


def test_a_second_call_transfers_nothing_and_changes_nothing(hub, tmp_path, capsys):
    hub.files = {"train.zip": zipped(split_files())}
    fetch(config(hub, tmp_path))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "train").rglob("*")}
    fetch(config(hub, tmp_path))
    assert len(hub.gets) == 1
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "train").rglob("*")}
    assert "train: complete" in capsys.readouterr().out


def test_720p_are_files_of_another_name_and_a_common_folder_is_taken_away(hub, tmp_path):
    hub.files = {"train_720p.zip": zipped({**split_files(), ".DS_Store": b"junk"}, folder="train_720p/")}
    fetch(config(hub, tmp_path, resolution="720p", keep_zips=True))
    assert content_of(tmp_path / "train") == split_files()
    assert (tmp_path / "train_720p.zip").read_bytes() == hub.files["train_720p.zip"]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.files = {"train.zip": zipped(split_files())}
    hub.cut_after = 350
    fetch(config(hub, tmp_path))
    assert [asked for _, asked in hub.gets] == [None, "bytes=300-"]
    assert content_of(tmp_path / "train") == split_files()


def _start(hub, out, repo_root):
    flags = ["--out", str(out), "--splits", "train", "--endpoint", hub.url]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    command = [sys.executable, "-m", "training.download", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_download_goes_on_where_it_was(hub, tmp_path, repo_root):
    # The client hands on pieces of 10 MiB.
    files = {**split_files(), "action_0/clip_2.mp4": os.urandom(24 << 20)}
    hub.files = {"train.zip": zipped(files)}
    hub.stall_after = 22 << 20
    process = _start(hub, tmp_path, repo_root)
    assert hub.stalled.wait(30)
    part = tmp_path / ".download" / f"train.zip.{hashlib.sha256(hub.files['train.zip']).hexdigest()[:12]}.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size >= 20 << 20) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    have = part.stat().st_size
    assert have >= 20 << 20
    hub.stall_after = None
    fetch(config(hub, tmp_path))
    assert hub.gets[-1] == ("train.zip", f"bytes={have}-")
    assert content_of(tmp_path / "train") == files


def test_ctrl_c_says_that_the_same_command_goes_on_and_no_second_download_interferes(hub, tmp_path, repo_root):
    hub.files = {"train.zip": zipped(split_files())}
    hub.stall_after = 100
    process = _start(hub, tmp_path, repo_root)
    assert hub.stalled.wait(30)
    with pytest.raises(DownloadError, match=r"another download to .* is running"):
        fetch(config(hub, tmp_path))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on where this one stopped" in said
    assert "Traceback" not in said


def test_extraction_that_was_interrupted_goes_on_with_what_is_whole(hub, tmp_path):
    files = split_files()
    hub.files = {"train.zip": zipped(files)}
    work = tmp_path / ".download" / "train"
    (work / "action_0").mkdir(parents=True)
    whole = work / "action_0" / "clip_0.mp4"
    whole.write_bytes(files["action_0/clip_0.mp4"])
    (work / "action_0" / "clip_1.mp4.part").write_bytes(b"half")
    (work / "annotations.json").write_bytes(b"of an earlier version")
    before = whole.stat().st_ino
    fetch(config(hub, tmp_path))
    assert content_of(tmp_path / "train") == files
    assert (tmp_path / "train" / "action_0" / "clip_0.mp4").stat().st_ino == before


def test_files_that_are_there_are_kept_and_missing_ones_added(hub, tmp_path, capsys):
    files = split_files()
    hub.files = {"train.zip": zipped(files)}
    own = tmp_path / "train" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    (tmp_path / "train" / "annotations.json").write_bytes(files["annotations.json"])
    fetch(config(hub, tmp_path))
    assert content_of(tmp_path / "train") == {**files, "notes.txt": b"mine"}
    assert "4 files extracted" in capsys.readouterr().out
    assert work_of(tmp_path) == []


def test_a_file_with_other_content_is_named_and_nothing_is_changed(hub, tmp_path):
    files = split_files()
    hub.files = {"train.zip": zipped(files)}
    clip = tmp_path / "train" / "action_1" / "clip_0.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(files["action_1/clip_0.mp4"][::-1])
    with pytest.raises(DownloadError, match=r"1 files are there with other content: .*action_1/clip_0\.mp4\. Nothing"):
        fetch(config(hub, tmp_path))
    assert content_of(tmp_path / "train") == {"action_1/clip_0.mp4": files["action_1/clip_0.mp4"][::-1]}


def test_a_file_that_changed_since_is_named_without_a_download(hub, tmp_path):
    hub.files = {"train.zip": zipped(split_files())}
    fetch(config(hub, tmp_path))
    (tmp_path / "train" / "action_0" / "clip_0.mp4").write_bytes(b"short")
    with pytest.raises(DownloadError, match=r"other content: .*action_0/clip_0\.mp4"):
        fetch(config(hub, tmp_path))
    assert len(hub.gets) == 1


def test_a_file_that_was_deleted_since_comes_back(hub, tmp_path):
    hub.files = {"train.zip": zipped(split_files())}
    fetch(config(hub, tmp_path))
    (tmp_path / "train" / "action_0" / "clip_0.mp4").unlink()
    fetch(config(hub, tmp_path))
    assert content_of(tmp_path / "train") == split_files()


def test_a_part_that_is_longer_than_the_file_is_thrown_away(hub, tmp_path):
    hub.files = {"train.zip": zipped(split_files())}
    digest = hashlib.sha256(hub.files["train.zip"]).hexdigest()
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download" / f"train.zip.{digest[:12]}.part").write_bytes(bytes(len(hub.files["train.zip"]) + 1))
    fetch(config(hub, tmp_path))
    assert hub.gets == [("train.zip", None)]
    assert content_of(tmp_path / "train") == split_files()


def test_what_has_another_hash_than_the_hub_says_is_deleted(hub, tmp_path):
    hub.files = {"train.zip": zipped(split_files())}
    hub.sha256 = {"train.zip": "ab" * 32}
    with pytest.raises(DownloadError, match=r"train\.zip came damaged: sha256 .*, not abababababab.*It is deleted"):
        fetch(config(hub, tmp_path))
    assert work_of(tmp_path) == []
    assert not (tmp_path / "train").exists()


def test_a_zip_of_ones_own_is_used_if_it_is_the_hubs_and_refused_otherwise(hub, tmp_path):
    hub.files = {"train.zip": zipped(split_files())}
    (tmp_path / "train.zip").write_bytes(hub.files["train.zip"])
    fetch(config(hub, tmp_path))
    assert hub.gets == []
    assert (tmp_path / "train.zip").exists()
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train.zip").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"train\.zip is there and is not the hub's: 4 bytes, not"):
        fetch(config(hub, tmp_path))
    assert (tmp_path / "train.zip").read_bytes() == b"mine"


def test_a_zip_that_was_published_damaged_is_refused_at_the_file_that_is(hub, tmp_path):
    files = split_files()
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    damaged = stored.getvalue().replace(b"train 1 1 train 1 1 ", b"train 1 1 trainX1 1 ", 1)
    hub.files = {"train.zip": damaged}
    with pytest.raises(DownloadError, match=r"train\.zip is damaged at action_1/clip_1\.mp4: Bad CRC-32"):
        fetch(config(hub, tmp_path))
    assert not (tmp_path / "train").exists()
    hub.files = {"train.zip": damaged[:-100]}
    with pytest.raises(DownloadError, match="is no readable zip file"):
        fetch(config(hub, tmp_path))


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "action_0/../../evil.txt", "C:/evil.txt", "a\\..\\evil"])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_written(hub, tmp_path, name):
    hub.files = {"train.zip": zipped({**split_files(), name: b"evil"})}
    with pytest.raises(DownloadError, match="is no ordinary file inside its folder"):
        fetch(config(hub, tmp_path / "data"))
    assert not (tmp_path / "data" / "train").exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_links_and_names_that_come_twice_are_refused(hub, tmp_path):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        link = zipfile.ZipInfo("action_0")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    hub.files = {"train.zip": memory.getvalue()}
    with pytest.raises(DownloadError, match="'action_0', which is no ordinary file"):
        fetch(config(hub, tmp_path))
    hub.files = {"train.zip": zipped({"a.mp4": b"1", "A.mp4": b"2"})}
    with pytest.raises(DownloadError, match="holds a name twice"):
        fetch(config(hub, tmp_path))


def test_too_little_space_is_said_before_the_first_byte(hub, tmp_path, monkeypatch):
    hub.files = {"train.zip": zipped(split_files())}
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100))
    with pytest.raises(DownloadError, match=r"train at 224p needs .* MB, and .* has 0\.0 MB free\. Free space"):
        fetch(config(hub, tmp_path))
    assert hub.gets == []


def test_an_archive_that_unpacks_to_more_than_the_disk_holds_is_not_unpacked(hub, tmp_path, monkeypatch):
    hub.files = {"train.zip": zipped({**split_files(), "zeros": bytes(50_000_000)})}
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10_000_000))
    with pytest.raises(DownloadError, match=r"extracting train\.zip needs 50\.0 MB"):
        fetch(config(hub, tmp_path))
    assert not (tmp_path / "train").exists()


def test_a_missing_file_repository_or_revision_is_named_with_the_cure(hub, tmp_path):
    hub.files = {"train.zip": zipped(split_files())}
    with pytest.raises(DownloadError, match=r"has no file valid\.zip at revision 'main'\. Check --repo"):
        fetch(config(hub, tmp_path, splits=("train", "valid")))
    assert hub.gets == []
    with pytest.raises(DownloadError, match=r"no file train_720p\.zip.* --repo SoccerNet/SN-MVFouls-2025"):
        fetch(config(hub, tmp_path, resolution="720p"))
    with pytest.raises(DownloadError, match=r"no data set Some/Body at .*HF_TOKEN"):
        fetch(config(hub, tmp_path, repo="Some/Body"))
    with pytest.raises(DownloadError, match="has no revision 'v9'"):
        fetch(config(hub, tmp_path, revision="v9"))


def test_the_token_of_the_environment_is_sent_with_every_request(hub, tmp_path, monkeypatch):
    hub.files = {"train.zip": zipped(split_files())}
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    fetch(config(hub, tmp_path))
    assert hub.tokens == {"Bearer hf_test"}


def test_a_hub_that_cannot_be_reached_is_named(tmp_path):
    with pytest.raises(DownloadError, match=r"train\.zip: the connection to http://127\.0\.0\.1:9 failed"):
        fetch(DownloadConfig(out=tmp_path, splits=("train",), endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize("kind", ["aes", "zipcrypto"])
def test_encrypted_archives_need_their_password(hub, tmp_path, monkeypatch, kind):
    files = {name: content for name, content in split_files().items() if "clip_1" not in name}
    hub.files = {"train.zip": _encrypted(files, tmp_path, kind)}
    out = tmp_path / "data"
    with pytest.raises(DownloadError, match=r"train\.zip is encrypted\. .*NDA.*SOCCERNET_PASSWORD"):
        fetch(config(hub, out))
    with pytest.raises(DownloadError, match=r"[Bb]ad password.*Check SOCCERNET_PASSWORD or --password"):
        fetch(config(hub, out, password="wrong"))  # noqa: S106
    monkeypatch.setenv("SOCCERNET_PASSWORD", "secret")
    fetch(config(hub, out))
    assert content_of(out / "train") == files
    assert len(hub.gets) == 1, "the download was kept"


def _encrypted(files, folder, kind):
    path = folder / "encrypted.zip"
    if kind == "aes":
        with pyzipper.AESZipFile(path, "w", compression=zipfile.ZIP_DEFLATED, encryption=pyzipper.WZ_AES) as archive:
            archive.setpassword(b"secret")
            for name, content in files.items():
                archive.writestr(name, content)
        return path.read_bytes()
    if shutil.which("zip") is None:
        pytest.skip("Info-ZIP's zip is not installed")
    for name, content in files.items():
        (folder / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "plain" / name).write_bytes(content)
    command = ["zip", "-q", "-r", "-P", "secret", str(path), "."]
    subprocess.run(command, cwd=folder / "plain", check=True)
    return path.read_bytes()


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="--splits"):
        DownloadConfig(out=Path("x"), splits=())
    with pytest.raises(ConfigError, match="Name each split once"):
        DownloadConfig(out=Path("x"), splits=("train", "train"))
    with pytest.raises(ConfigError, match="--repo is 'x'"):
        DownloadConfig(out=Path("x"), repo="x")
