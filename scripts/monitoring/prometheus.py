"""A real Prometheus for a while: on loopback, with the project's rules, scraping processes of this machine as pods."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RULES = Path(__file__).resolve().parents[2] / "k8s" / "monitoring" / "rules.yaml"
START_S = 30


class PrometheusError(Exception):
    """Prometheus is not there, does not start, or does not understand a question; the message says which and why."""


@dataclass(frozen=True)
class Target:
    """A process to scrape, and what it would be called in a cluster."""

    job: str
    address: str
    """host:port; the path is /metrics."""
    pod: str


@dataclass(frozen=True)
class Series:
    """One answer of an instant query."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """Where a running one listens."""

    url: str

    def query(self, expr: str) -> list[Series]:
        """What an expression gives now.

        Raises:
            PrometheusError: It is refused.
        """
        answer = self._get("query", query=expr)
        if answer["resultType"] == "scalar":
            return [Series({}, float(answer["result"][1]))]
        return [Series(series["metric"], float(series["value"][1])) for series in answer["result"]]

    def metric_names(self) -> set[str]:
        """All metrics that have ever had a sample."""
        return set(self._get("label/__name__/values"))

    def kinds(self) -> dict[str, str]:
        """The type of each scraped metric family: counter, gauge, histogram, summary."""
        return {name: found[0]["type"] for name, found in self._get("metadata").items()}

    def rules(self) -> list[dict[str, Any]]:
        """The rule groups as Prometheus has evaluated them."""
        groups: list[dict[str, Any]] = self._get("rules")["groups"]
        return groups

    def _get(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{parameters or path}: {error.read().decode()}") from error


@contextmanager
def run_prometheus(
    targets: Sequence[Target], folder: Path, *, namespace: str, every_s: int = 1
) -> Iterator[Prometheus]:
    """Run Prometheus with the project's rules until the context ends; its files lie in `folder`.

    Raises:
        PrometheusError: It is not installed, or does not start.
    """
    program = shutil.which("prometheus")
    if not program:
        raise PrometheusError("prometheus is not installed; on Debian, scripts/debian-packages.sh installs it")
    port = _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.json").write_text(json.dumps(_config(targets, namespace, every_s)))
    (folder / "rules.json").write_text(json.dumps(_rules()))
    flags = (
        f"--config.file={folder / 'prometheus.json'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *flags], stdout=log, stderr=log)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def _config(targets: Sequence[Target], namespace: str, every_s: int) -> dict[str, Any]:
    """YAML is a superset of JSON. The labels are those that PodMonitors give."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for target in targets:
        labels = {"namespace": namespace, "pod": target.pod}
        jobs.setdefault(target.job, []).append({"targets": [target.address], "labels": labels})
    return {
        "global": {"scrape_interval": f"{every_s}s", "evaluation_interval": f"{every_s}s"},
        "rule_files": ["rules.json"],
        "scrape_configs": [
            # It names the pods that it speaks of itself.
            {"job_name": job, "static_configs": found, "honor_labels": job == "kube-state-metrics"}
            for job, found in jobs.items()
        ],
    }


def _rules() -> dict[str, Any]:
    import yaml

    groups: dict[str, Any] = {"groups": yaml.safe_load(RULES.read_text())["spec"]["groups"]}
    return groups


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(0.1)
    raise PrometheusError(f"prometheus did not get ready within {START_S} s; its log says: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
