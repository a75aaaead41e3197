"""From flags to a running server. What can be refused is refused before KServe, which takes seconds, is imported."""

from __future__ import annotations

import signal
import sys

from mvfoul.artifact import load_artifact
from serving.access import make_access
from serving.config import ServeConfig
from serving.json_log import configure_logging
from serving.loading import load_here
from serving.priority_pool import PriorityPool


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints one line READY to stdout when both protocols answer.

    Raises:
        ArtifactError: An artifact is damaged, or the primary fails its self-test.
        ConfigError: An address cannot be bound.
    """
    # Until somebody listens to it, and after that: a hang-up asks for a reload and never ends the server.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logging(config.log_level, config.log_format)
    access = make_access(config)
    for directory in filter(None, (config.canary, config.shadow)):
        load_artifact(directory)  # what is damaged is refused now, before this server is ready
    if config.triton is None:
        line = PriorityPool(1, "graphs")
        generation = load_here(config, config.artifact, "primary", line)
    else:
        # Triton itself is asked once the probes are answered: it may start later than this process.
        artifact = load_artifact(config.artifact)
    # KServe parses sys.argv when it is imported, and would take a flag of ours for its own.
    sys.argv = sys.argv[:1]
    from serving.parts import embedded, transformer
    from serving.server import FoulServer

    parts = embedded(config, generation, line) if config.triton is None else transformer(config, artifact)
    FoulServer(config, parts, access).start()
