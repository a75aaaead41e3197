"""From flags to a running server. What can be refused is refused before KServe, which takes seconds, is imported."""

from __future__ import annotations

import logging
import sys

from mvfoul.artifact import Artifact, load_artifact
from mvfoul.command import available_cpus
from serving.config import LogLevel, ServeConfig
from serving.engine import Engine, EngineSettings
from serving.graphs import ArtifactGraphs, OnnxGraphs

log = logging.getLogger("mvfoul.serving")


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints one line READY to stdout when both protocols answer.

    Raises:
        ArtifactError: The artifact is damaged or fails its self-test.
        ConfigError: An address cannot be bound.
    """
    _configure_logging(config.log_level)
    engine = load_engine(config)
    try:
        # KServe parses sys.argv when it is imported, and would take a flag of ours for its own.
        sys.argv = sys.argv[:1]
        from serving.server import FoulServer

        FoulServer(config, engine).start()
    finally:
        engine.close()


def load_engine(config: ServeConfig) -> Engine:
    """Load and verify the artifact, and run its self-test.

    Raises:
        ArtifactError: It is damaged or computes something else than at export.
        ConfigError: The engine asked for is not installed.
    """
    artifact = load_artifact(config.artifact)
    graphs = _load_graphs(artifact, config)
    graphs.self_test(artifact)
    log.info("artifact %s (%s) passed its self-test in %s", config.artifact, artifact.version, graphs.name)
    settings = EngineSettings(
        decode_workers=config.decode_workers or available_cpus(),
        max_in_flight=config.max_in_flight,
        abstain_below=config.abstain_below,
    )
    return Engine(artifact, graphs, settings)


def _load_graphs(artifact: Artifact, config: ServeConfig) -> ArtifactGraphs:
    threads = config.threads or available_cpus()
    if config.engine == "openvino":
        from serving.openvino_graphs import OpenVinoGraphs

        return OpenVinoGraphs(artifact, threads=threads)
    return OnnxGraphs(artifact, threads=threads)


def _configure_logging(level: LogLevel) -> None:
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("mvfoul").setLevel(level.upper())
