"""The main job from files to a decision, as `make demo` runs it.

    python scripts/demo.py                                   synthetic data, trained from scratch
    python scripts/demo.py --data DIR                        a data set in the official layout, trained on
    python scripts/demo.py --data DIR --ckpt best.pth.tar    no training: evaluate, export and serve this checkpoint

Each step is one of the project's own commands, printed before it runs, so each can be repeated by hand. An interrupted
demo can be started again: finished data is kept, everything else is written anew. The server is stopped at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mvfoul.command import exit_on_sigterm

SERVER_START_S = 60


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def main() -> int:
    """Run the demo; return the exit code."""
    options = _parse()
    exit_on_sigterm()
    started = time.monotonic()
    timings: list[tuple[str, float]] = []
    try:
        data = options.data or _timed(timings, "data", _make_data, options)
        checkpoint = options.ckpt or _timed(timings, "training", _train, options, data)
        _timed(timings, "evaluation", _evaluate, options, data, checkpoint)
        artifact = _timed(timings, "export", _export, options, data, checkpoint)
        _timed(timings, "serving", _serve_and_ask, artifact, _actions(data, options.split, options.ask))
    except DemoError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; start the same command again", file=sys.stderr)
        return 130
    _summary(options, data, checkpoint, artifact, timings, time.monotonic() - started)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where everything is written")
    parser.add_argument("--data", type=Path, help="a data set in the official layout, instead of a synthetic one")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint to use, instead of training one")
    parser.add_argument("--split", default="test", help="held-out split to evaluate and to classify")
    parser.add_argument("--ask", type=int, default=3, help="how many actions to send to the server")
    parser.add_argument(
        "--synthetic", type=shlex.split, default=[], help="more flags for training.synthetic, in one string"
    )
    parser.add_argument("--training", type=shlex.split, default=[], help="more flags for training, in one string")
    return parser.parse_args()


def _timed(timings: list[tuple[str, float]], name: str, step, *arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
    """Run a step under a heading and note its seconds."""
    print(f"\n== {name} " + "=" * (100 - len(name)), flush=True)
    start = time.monotonic()
    result = step(*arguments)
    timings.append((name, time.monotonic() - start))
    return result


def _run(module: str, *flags: str | Path) -> None:
    """Run `python -m module flags` in this terminal.

    Raises:
        DemoError: It failed; its own message stands above.
    """
    print("$", _shown(module, *flags), flush=True)
    code = subprocess.run([sys.executable, "-m", module, *map(str, flags)], check=False).returncode
    if code != 0:
        raise DemoError(f"the command above ended with exit code {code}; its message says why")


def _shown(module: str, *flags: str | Path) -> str:
    return shlex.join(["python", "-m", module, *map(str, flags)])


def _make_data(options: argparse.Namespace) -> Path:
    data: Path = options.out / "data"
    _run("training.synthetic", "--out", data, "--recipe", "demo", *options.synthetic)
    return data


def _train(options: argparse.Namespace, data: Path) -> Path:
    if missing := [split for split in ("train", "valid") if not _has_split(data, split)]:
        raise DemoError(
            f"{data} has no split {' and '.join(missing)} to train on. Give a checkpoint instead of training: "
            f"make demo DATA={data} CKPT=runs/demo/run/best.pth.tar (`make demo` without DATA makes that one)"
        )
    run: Path = options.out / "run"
    _run("training", "--recipe", "cpu-demo", "--data.root", data, "--output", run, "--overwrite", *options.training)
    return run / "best.pth.tar"


def _evaluate(options: argparse.Namespace, data: Path, checkpoint: Path) -> None:
    output = options.out / "evaluation"
    _run("training.evaluate", "--ckpt", checkpoint, "--data.root", data, "--split", options.split, "--output", output)


def _export(options: argparse.Namespace, data: Path, checkpoint: Path) -> Path:
    artifact: Path = options.out / "artifact"
    flags = ("--ckpt", checkpoint, "--output", artifact, "--data.root", data, "--split", options.split)
    _run("export", *flags)
    return artifact


def _serve_and_ask(artifact: Path, actions: Sequence[Path]) -> None:
    with _server(artifact) as target:
        for action in actions:
            print(f"\n{action}   annotated: {_truth(action)}", flush=True)
            _run("serving.client", *sorted(action.glob("*.mp4")), "--target", target)


@contextmanager
def _server(artifact: Path) -> Iterator[str]:
    """Start the server on free ports of this machine, yield its gRPC address, stop it whatever happens."""
    http_port, grpc_port = _free_ports(2)
    flags = ("--artifact", str(artifact), "--http-port", str(http_port), "--grpc-port", str(grpc_port))
    print("$", _shown("serving", *flags), "&", flush=True)
    log_path = artifact.parent / "server.log"
    with log_path.open("w") as log:
        command = [sys.executable, "-m", "serving", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_open(process, grpc_port, log_path)
            yield f"127.0.0.1:{grpc_port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            print("\nserver stopped")


def _wait_until_open(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the server ended with exit code {process.returncode}; see {log_path}")
        with socket.socket() as probe:
            # The ports open only after the self-test has passed.
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise DemoError(f"the server did not start within {SERVER_START_S} s; see {log_path}")


def _truth(action: Path) -> str:
    """Return what the annotations say of an action, "unknown" where they have no labels."""
    annotations = json.loads((action.parent / "annotations.json").read_text())
    fields = annotations["Actions"].get(action.name.removeprefix("action_"), {})
    offence, severity = fields.get("Offence") or "unknown offence", str(fields.get("Severity") or "")
    card = {"1.0": " + No card", "3.0": " + Yellow card", "5.0": " + Red card"}.get(severity, "")
    return f"{fields.get('Action class') or 'unknown class'}, {offence}{card if offence == 'Offence' else ''}"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _has_split(data: Path, split: str) -> bool:
    return any((data / name / "annotations.json").is_file() for name in (split, split.capitalize()))


def _actions(data: Path, split: str, count: int) -> list[Path]:
    numbered = sorted((data / split).glob("action_*"), key=lambda folder: (len(folder.name), folder.name))
    folders = [folder for folder in numbered if any(folder.glob("*.mp4"))]
    if not folders:
        raise DemoError(f"{data / split} has no folder action_<id> with clips; is it in the official layout?")
    return folders[:count]


def _summary(
    options: argparse.Namespace,
    data: Path,
    checkpoint: Path,
    artifact: Path,
    timings: Sequence[tuple[str, float]],
    total_s: float,
) -> None:
    print("\n== done " + "=" * 96)
    print("  ".join(f"{name} {seconds:.0f} s" for name, seconds in timings), f"  total {total_s:.0f} s\n")
    for what, where in (
        ("data", data),
        ("checkpoint", checkpoint),
        ("training curves", checkpoint.parent / "training_history.png"),
        ("evaluation", options.out / "evaluation"),
        ("artifact", artifact),
        ("server log", options.out / "server.log"),
    ):
        print(f"  {what:16} {where}")
    metrics = json.loads((options.out / "evaluation" / "metrics.json").read_text())
    if metrics.get("score") is not None:
        alone = metrics["single_view"]["score"]
        print(
            f"\n  score on {options.split}: {100 * metrics['score']:.1f} (mean of the two balanced accuracies);",
            end=" ",
        )
        print(f"each view alone: {100 * alone:.1f}")
    print("\nNext:")
    clips = " ".join(str(clip) for clip in sorted(_actions(data, options.split, 1)[0].glob("*.mp4")))
    print(f"  {_shown('serving', '--artifact', artifact)}")
    print(f"  python -m serving.client {clips}")
    print("  python -m training --help")


if __name__ == "__main__":
    sys.exit(main())
