"""One file of the hub to one file on disk: goes on after an interruption, and is what the hub says it is.

The hub's client finds and transfers; it no longer keeps what an interrupted process had, so the part file is ours.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its HTTP library
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from mvfoul.artifact import sha256_of
from mvfoul.errors import DownloadError
from training.download.archive import OnBytes
from training.download.config import REPOSITORY_720P, DownloadConfig

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says of a file."""

    name: str
    url: str
    """Of this very revision, whatever the branch does later."""
    size_bytes: int
    sha256: str | None
    """None where the hub has none: it has one of every large file."""


def remote_file(config: DownloadConfig, name: str) -> RemoteFile:
    """Ask the hub for a file's size and hash.

    Raises:
        DownloadError: There is no such file, it may not be read, or the hub cannot be reached.
    """
    url = hf_hub_url(config.repo, name, repo_type="dataset", revision=config.revision, endpoint=config.endpoint)
    with _sentences(config, name):
        facts = get_hf_file_metadata(url, endpoint=config.endpoint)
    if facts.size is None or facts.etag is None or facts.commit_hash is None:
        raise DownloadError(f"{url}: the answer has no size, hash or revision. Is --endpoint {config.endpoint} a hub?")
    pinned = hf_hub_url(config.repo, name, repo_type="dataset", revision=facts.commit_hash, endpoint=config.endpoint)
    etag = facts.etag.lower()
    return RemoteFile(name, pinned, facts.size, etag if _SHA256.fullmatch(etag) else None)


def part_of(remote: RemoteFile, folder: Path) -> Path:
    """Return where an unfinished download lies; another version of the file has another name."""
    return folder / f"{remote.name}.{(remote.sha256 or str(remote.size_bytes))[:12]}.part"


def download(config: DownloadConfig, remote: RemoteFile, target: Path, *, folder: Path, on_bytes: OnBytes) -> None:
    """Fetch a file, going on with what is there of it, and check size and hash.

    Args:
        config: Whose hub it is.
        remote: As `remote_file` says.
        target: Where the whole file goes, by a rename.
        folder: Of the unfinished file; on the same disk as the target.
        on_bytes: Called while it goes, first with what is there.

    Raises:
        DownloadError: The connection or the disk failed, or what came is not what the hub says.
    """
    part = part_of(remote, folder)
    with _sentences(config, remote.name), part.open("ab") as stream:
        if stream.tell() > remote.size_bytes:
            stream.seek(0)
            stream.truncate()
        on_bytes(stream.tell())
        http_get(
            remote.url,
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=remote.size_bytes,
            tqdm_class=lambda **_: _Progress(on_bytes),  # type: ignore[arg-type]
        )
    if wrong := difference(part, remote):
        part.unlink()
        raise DownloadError(f"{remote.name} came damaged: {wrong}. It is deleted; run the same command again.")
    part.replace(target)


class _Progress:
    """What the hub's client asks of a progress bar; its own stays hidden on some terminals."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self.update = on_bytes

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def difference(path: Path, remote: RemoteFile) -> str | None:
    """Return in which way the file at `path` is not the hub's: its size or hash; None where it is."""
    size = path.stat().st_size
    if size != remote.size_bytes:
        return f"{size} bytes, not {remote.size_bytes}"
    if remote.sha256 is not None and (found := sha256_of(path)) != remote.sha256:
        return f"sha256 {found[:12]}..., not {remote.sha256[:12]}..."
    return None


@contextmanager
def _sentences(config: DownloadConfig, name: str) -> Iterator[None]:
    """Turn what the hub's client raises into sentences with a cure."""
    endpoint = config.endpoint or constants.ENDPOINT
    again = "Run the same command again: it goes on where it stopped."
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(
            f"{config.repo} at {endpoint} is gated. Ask for access on its page, then set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"there is no data set {config.repo} at {endpoint}, or this account may not see it. Check --repo, or set "
            "HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{config.repo} has no revision {config.revision!r}. Use --revision main.") from error
    except RemoteEntryNotFoundError as error:
        raise DownloadError(_no_such_file(config, name)) from error
    except HfHubHTTPError as error:
        raise DownloadError(f"{endpoint} refused {name}: {str(error).splitlines()[0]}. {again}") from error
    except HTTPError as error:
        raise DownloadError(
            f"{name}: the connection to {endpoint} failed ({error or type(error).__name__}). {again}"
        ) from error
    except OSError as error:
        cure = "Free space, then run" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Run"
        raise DownloadError(f"{name}: {error}. {cure} the same command again: it goes on where it stopped.") from error


def _no_such_file(config: DownloadConfig, name: str) -> str:
    text = f"{config.repo} has no file {name} at revision {config.revision!r}."
    if config.resolution == "720p" and config.repo != REPOSITORY_720P:
        return f"{text} The files of 720p were published in another one: --repo {REPOSITORY_720P}"
    return f"{text} Check --repo, --revision, --splits and --resolution."
