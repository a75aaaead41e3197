"""What `make monitoring-demo` runs: the platform under load, Prometheus, and a page with the dashboards' panels.

    python -m scripts.monitoring.demo                              until Ctrl-C, at most 30 minutes
    python -m scripts.monitoring.demo --minutes 4 --pictures docs  for 4 minutes, then pictures of both dashboards

Without an artifact it makes a small one first: synthetic clips, two epochs, an export.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

from mvfoul.command import exit_on_sigterm
from scripts.monitoring.load import actions_in, steady_load
from scripts.monitoring.page import BrowserError, browse, served_page
from scripts.monitoring.processes import Command, ProcessError
from scripts.monitoring.prometheus import PrometheusError, run_prometheus
from scripts.monitoring.stack import run_stack

NAMESPACE = "mvfoul-demo"
_SCRAPE_S = 2
# Drift wants an evaluation of 100 actions or more; learning from few keeps the epochs short.
_SPLITS = ("--splits.train", "0.15", "--splits.valid", "0.8", "--splits.test", "0.05")
_DATA = ("--recipe", "demo", "--actions", "150", *_SPLITS)
_WIDTH_PX = 1500
_PICTURES = (
    # file, dashboard, first row, height in pixels
    ("monitoring-serving", "serving-latency", "At a glance", 2104),
    ("monitoring-serving-more", "serving-latency", "Sessions and releases", 2580),
    ("monitoring-training", "training", "Progress", 1110),
)


def main() -> int:
    """Run the demonstration; return the exit code."""
    options = _parse()
    exit_on_sigterm()
    try:
        _run(options)
    except (ProcessError, PrometheusError, BrowserError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="what `python -m export` wrote; made where left out")
    parser.add_argument("--out", type=Path, default=Path("runs/monitoring"), help="data, logs, Prometheus' files")
    parser.add_argument("--port", type=int, default=8099, help="of the page; 0 takes a free one")
    parser.add_argument("--minutes", type=float, default=30, help="end after so long")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between a sender's requests, on average")
    parser.add_argument("--pictures", type=Path, help="at the end, write pictures of both dashboards to this folder")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    data = out / "data"
    _do(out, "data", "training.synthetic", *_DATA, "--out", str(data))
    artifact = options.artifact or _make_artifact(out, data)
    shutil.rmtree(out / "prometheus", ignore_errors=True)
    shutil.rmtree(out / "stack", ignore_errors=True)
    print("starting server, transformer, Triton, training", flush=True)
    with (
        run_stack(artifact, data, out / "stack") as stack,
        run_prometheus(stack.targets, out / "prometheus", namespace=NAMESPACE, every_s=_SCRAPE_S) as prometheus,
        steady_load(stack, actions_in(data), pause_s=options.pause),
        served_page(prometheus.url, port=options.port, scrape_s=_SCRAPE_S) as page,
    ):
        print(f"READY page={page} prometheus={prometheus.url} minutes={options.minutes:g}", flush=True)
        time.sleep(options.minutes * 60)
        if options.pictures:
            _take_pictures(page, options.pictures, minutes=5)


def _make_artifact(out: Path, data: Path) -> Path:
    artifact, run = out / "artifact", out / "first-run"
    if not (artifact / "manifest.json").is_file():
        few = ("--loop.epochs", "2", "--output", str(run), "--overwrite")
        _do(out, "first-training", "training", "--recipe", "cpu-demo", "--data.root", str(data), *few)
        _do(out, "export", "export", "--ckpt", str(run / "best.pth.tar"), "--output", str(artifact))
    return artifact


def _do(out: Path, name: str, module: str, *flags: str) -> None:
    print(f"$ python -m {module} {' '.join(flags)}", flush=True)
    Command(out, name, (module, *flags)).wait()


def _take_pictures(page: str, folder: Path, *, minutes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, board, first, height_px in _PICTURES:
        path = folder.resolve() / f"{name}.png"
        address = f"{page}?{urlencode({'dashboard': board, 'from': first, 'minutes': minutes, 'window': 20})}&still"
        browse(address, f"--window-size={_WIDTH_PX},{height_px}", f"--screenshot={path}")
        print(path, flush=True)


if __name__ == "__main__":
    sys.exit(main())
