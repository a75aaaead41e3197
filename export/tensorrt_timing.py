"""The timing cache: how long each kernel took on this GPU, so that the next build need not measure again.

It belongs to one GPU model, CUDA and TensorRT version, which TensorRT checks. A cache that does not fit, or is damaged,
is set aside: the build starts a new one and says so. The default name has the GPU and the version, so that machines
that share a folder do not replace each other's.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from export.tensorrt_callbacks import BuildLog
from mvfoul.errors import PlanError
from mvfoul.plan import TensorRTHost


def timing_cache_file(place: Path, host: TensorRTHost) -> Path:
    """Return `place` itself, or where it is a folder, the file in it for this GPU and version."""
    if not place.is_dir():
        return place
    gpu = re.sub(r"[^a-z0-9]+", "-", host.gpu.lower()).strip("-")
    return place / f"tensorrt-{host.tensorrt_version}-{host.gpu_architecture}-{gpu}.timing"


def attach_timing_cache(config: Any, path: Path, log: BuildLog) -> str:
    """Give a `tensorrt.IBuilderConfig` the cache in `path`, or a new one; return what was done, in words.

    Raises:
        PlanError: TensorRT refuses even an empty cache.
    """
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        stored = b""
    except OSError as error:
        raise PlanError(
            f"the timing cache {path} cannot be read ({error}); name another: --tensorrt.timing-cache"
        ) from error
    if _attach(config, stored):
        return f"timing cache of {len(stored) / 1e6:.1f} MB" if stored else "new timing cache"
    reasons = log.take_errors()
    if not stored or not _attach(config, b""):
        raise PlanError(f"TensorRT takes no timing cache: {'; '.join(reasons) or 'it gives no reason'}")
    return "new timing cache: the one that was there is of another GPU or version, or damaged"


def save_timing_cache(config: Any, path: Path) -> str:
    """Write the cache after a build, to a temporary name and by rename; return what was done, in words.

    A cache that cannot be written is said, not raised: the plan is built, and the next build is only slower.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return "TensorRT kept no timing cache"
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(cache.serialize())
            os.fchmod(stream.fileno(), 0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        return f"timing cache not kept: {error}"
    return f"timing cache in {path}"


def _attach(config: Any, stored: bytes) -> bool:
    cache = config.create_timing_cache(stored)
    # ignore_mismatch=True would take the times of another device for this one's.
    return cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))
