"""From flags to a running server. What can be refused is refused before KServe, which takes seconds, is imported."""

from __future__ import annotations

import logging
import sys

from mvfoul.artifact import load_artifact
from serving.config import LogLevel, ServeConfig
from serving.loading import load_here

log = logging.getLogger("mvfoul.serving")


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints one line READY to stdout when both protocols answer.

    Raises:
        ArtifactError: The artifact is damaged or fails its self-test.
        ConfigError: An address cannot be bound.
    """
    _configure_logging(config.log_level)
    if config.triton is None:
        generation = load_here(config, config.artifact, "primary")
    else:
        # Triton itself is asked once the probes are answered: it may start later than this process.
        artifact = load_artifact(config.artifact)
    # KServe parses sys.argv when it is imported, and would take a flag of ours for its own.
    sys.argv = sys.argv[:1]
    from serving.parts import embedded, transformer
    from serving.server import FoulServer

    parts = embedded(config, generation) if config.triton is None else transformer(config, artifact)
    FoulServer(config, parts).start()


def _configure_logging(level: LogLevel) -> None:
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("mvfoul").setLevel(level.upper())
