"""The flags of `python -m serving.repository`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mvfoul.command import check_flag

EncoderKind = Literal["tensorrt", "onnxruntime", "python"]

LIVE: Final = 1
"""Priority of a request that names none."""
BULK: Final = 2


@dataclass(frozen=True, kw_only=True)
class RepositoryConfig:
    """Write an artifact into a model repository of Triton, beside the versions that are there.

    A Triton that polls the repository never sees half a model: files are written beside it and renamed. Exit codes: 0
    written, 2 refused, 3 the Triton of --triton does not answer or takes too long.
    """

    output: Path
    """The model repository. Made if missing; not itself a mount point, so that renaming from beside it works."""
    artifact: Path | None = None
    """The directory that `python -m export` wrote. None: only --prune or --keep."""
    encoder: EncoderKind = "tensorrt"
    """What runs the encoder in Triton. tensorrt: the artifact's plan. onnxruntime: encoder.onnx in the backend of
    that name. python: encoder.onnx in Triton's python backend, on the CPU."""
    name: str = "mvfoul"
    """Of the ensemble; the other two are NAME_encoder and NAME_head."""
    gpus: str = ""
    """GPUs of the encoder: "all", "0,1", or "none" (onnxruntime on the CPU). Empty: all, and none for python."""
    instances: int = 1
    """Copies of the encoder per GPU, or on the CPU."""
    threads: int = 0
    """On the CPU: threads of each copy. 0: the CPUs that Triton may use, shared among the copies."""
    max_batch: int = 0
    """Most views in one call of the encoder. 0: what the plan was built for, otherwise 16."""
    preferred: tuple[int, ...] = ()
    """Batch sizes worth waiting for. Empty: what the plan is fastest at, otherwise the largest."""
    queue_delay_us: int = 2_000
    """How long a request may wait for others to share its batch."""
    max_queue: int = 64
    """Live requests that wait for the encoder; one more is refused at once (UNAVAILABLE)."""
    queue_timeout_ms: int = 5_000
    """A live request that waited longer is refused; a request may ask for less, in its parameter `timeout`."""
    bulk_max_queue: int = 256
    """The same for requests of priority 2."""
    bulk_queue_timeout_ms: int = 60_000
    """The same for requests of priority 2."""
    response_cache: bool = False
    """Answer repeated views from Triton's cache; start Triton with --cache-config local,size=BYTES."""
    latency_buckets_ms: tuple[float, ...] = ()
    """Upper ends of the buckets of Triton's histogram of latency, for a Triton that has it (2.51 refuses them); it is
    turned on by --metrics-config histogram_latencies=true. Empty: Triton's own."""
    no_warm_up: bool = False
    """Let the first requests pay for what an engine does once. Otherwise a model is ready after a batch of 1 and of
    the largest size."""
    no_self_test: bool = False
    """Do not compute golden.npz before writing. Hashes are checked all the same."""
    target_gpu: str = ""
    """Compute capability where Triton runs, such as sm_90: a plan for another one is refused now, not at loading."""
    target_tensorrt: str = ""
    """TensorRT version of the Triton image, such as 11.1.0.106, for the same reason."""
    triton: str = ""
    """host:port of the gRPC of a running Triton that serves this repository, in mode poll or explicit: the ensemble
    changes over only after Triton has loaded the version and computed golden.npz; otherwise the version is removed. All
    Tritons behind a name with several addresses are asked."""
    triton_timeout_s: float = 300.0
    """How long loading in Triton may take; a plan of a large network needs a minute or two."""
    prune: tuple[str, ...] = ()
    """Versions of artifacts to remove, after writing; never the one that the ensemble answers with."""
    keep: int = 0
    """Remove all but so many of the newest versions, after writing. 0: remove none."""
    dry_run: bool = False
    """Check everything, show what would be written, write nothing."""

    def __post_init__(self) -> None:
        check_flag(
            self.artifact is not None or bool(self.prune) or self.keep > 0,
            "--artifact",
            self.artifact,
            "Name an artifact to write, or use --prune or --keep.",
        )
        check_flag(
            bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name)),
            "--name",
            self.name,
            "Use letters, digits, _ . -",
        )
        self._check_where()
        self._check_batching()
        for flag, version in [("--prune", version) for version in self.prune]:
            check_flag(bool(re.fullmatch(r"[0-9a-f]{12}", version)), flag, version, "Use 12 hexadecimal digits.")
        check_flag(self.triton_timeout_s > 0, "--triton-timeout-s", self.triton_timeout_s, "Use more than 0.")
        check_flag(self.keep >= 0, "--keep", self.keep, "Use 1 or more, or 0 to remove none.")

    def _check_where(self) -> None:
        check_flag(
            bool(re.fullmatch(r"|all|none|\d+(,\d+)*", self.gpus)), "--gpus", self.gpus, "Use all, none, or 0,1."
        )
        if self.encoder == "python":
            check_flag(self.gpus in ("", "none"), "--gpus", self.gpus, "--encoder python computes on the CPU.")
        if self.encoder == "tensorrt":
            check_flag(
                self.gpus != "none", "--gpus", self.gpus, "TensorRT needs one; use --encoder onnxruntime or python."
            )
        check_flag(self.instances >= 1, "--instances", self.instances, "Use 1 or more.")
        check_flag(self.threads >= 0, "--threads", self.threads, "Use 1 or more, or 0 for all CPUs.")
        check_flag(
            not self.threads or self.on_cpu, "--threads", self.threads, "They are the CPU's; leave it out for a GPU."
        )

    def _check_batching(self) -> None:
        check_flag(self.max_batch >= 0, "--max-batch", self.max_batch, "Use 1 or more, or 0 for the default.")
        check_flag(all(size >= 1 for size in self.preferred), "--preferred", self.preferred, "Use sizes of 1 or more.")
        buckets = self.latency_buckets_ms
        check_flag(
            list(buckets) == sorted(set(buckets)) and all(end > 0 for end in buckets),
            "--latency-buckets-ms",
            buckets,
            "Use ascending numbers above 0.",
        )
        check_flag(self.queue_delay_us >= 0, "--queue-delay-us", self.queue_delay_us, "Use 0 or more.")
        for flag, size in (("--max-queue", self.max_queue), ("--bulk-max-queue", self.bulk_max_queue)):
            # 0 means "no limit" to Triton.
            check_flag(size >= 1, flag, size, "Use 1 or more: a queue without limit fills the memory.")
        for flag, ms in (
            ("--queue-timeout-ms", self.queue_timeout_ms),
            ("--bulk-queue-timeout-ms", self.bulk_queue_timeout_ms),
        ):
            check_flag(ms >= 1, flag, ms, "Use 1 or more.")

    @property
    def on_cpu(self) -> bool:
        """Whether the encoder computes on the CPU."""
        return self.encoder == "python" or self.gpus == "none"

    @property
    def gpu_numbers(self) -> tuple[int, ...]:
        """The GPUs that were named; empty for all."""
        return tuple(map(int, self.gpus.split(","))) if self.gpus[:1].isdigit() else ()
