"""One table of all five backbones at full size: PyTorch eager, torch.compile, ONNX Runtime, OpenVINO on this machine.

    python benchmarks/backbones.py                  makes what is missing in runs/backbones, then prints the table
    python benchmarks/backbones.py --again          measures anew; checkpoints and artifacts are kept
    python benchmarks/backbones.py --precision int8
    python benchmarks/backbones.py --precision fp16 --views 8 --engines eager-cuda eager-fp16-cuda compile-fp16-cuda

The weights are random: time does not depend on them. Each backbone is exported by `python -m export` and measured by
`python -m export.benchmark`, so a row can be repeated alone. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.model.names import BACKBONE_NAMES

REPO = Path(__file__).resolve().parent.parent

ENGINES = ("eager", "compile", "onnxruntime", "openvino")
# Neighbouring classes of a random head differ by less than the last digits of an 8-bit encoder.
LOOSE = ("--tolerance.undecided-margin", "0.5", "--tolerance.int8-cosine", "0.5")


def write_checkpoint(path: Path, backbone: str) -> None:
    import torch

    from training.checkpoint import Checkpoint, save_checkpoint
    from training.model.network import FoulNetwork

    torch.manual_seed(0)
    network = FoulNetwork(backbone, "attention")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    save_checkpoint(
        path, Checkpoint(epoch=0, backbone=backbone, aggregation="attention", clip=network.clip, state_dict=state)
    )


def run(*command: str | Path, may_fail: bool = False) -> None:
    print("$ python -m", *command, flush=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))}
    subprocess.run([sys.executable, "-m", *map(str, command)], check=not may_fail, stdout=sys.stderr, env=environment)


def is_measured(results: Path, engines: list[str]) -> bool:
    """Return whether all engines have finished there."""
    if not (results / "benchmark.json").is_file():
        return False
    found = {row["engine"] for row in json.loads((results / "benchmark.json").read_text())["rows"]}
    return found >= set(engines)


def measure(backbone: str, flags: argparse.Namespace) -> dict:
    folder = flags.output / backbone
    checkpoint, artifact = folder / "best.pth.tar", folder / flags.precision
    results = folder / f"benchmark-{flags.precision}-{flags.views}"
    if not checkpoint.is_file():
        write_checkpoint(checkpoint, backbone)
    if not (artifact / "manifest.json").is_file():
        how = () if flags.precision == "fp32" else (f"--{flags.precision}", *LOOSE)
        how += ("--allow-no-plan",) if flags.precision == "fp16" else ()
        run("export", "--ckpt", checkpoint, "--output", artifact, *how)
    if flags.again or not is_measured(results, flags.engines):
        limits = ("--views", flags.views, "--rounds", flags.rounds, "--seconds", flags.seconds)
        what = ("--artifact", artifact, "--ckpt", checkpoint, "--output", results)
        # An engine that fails is said in its row; the others have run.
        run("export.benchmark", *what, *limits, "--engines", *flags.engines, may_fail=True)
    return json.loads((results / "benchmark.json").read_text())


def line(document: dict, engines: list[str]) -> str:
    rows = {row["engine"]: row for row in document["rows"]}
    cells = []
    for engine in engines:
        if engine not in rows:
            cells.append("failed")
            continue
        low, middle, high = rows[engine]["ratio"] or (float("nan"),) * 3
        cells.append(f"{rows[engine]['p50_ms']:.3g} ms, **{middle:.2f}** ({low:.2f} to {high:.2f})")
    return f"| {document['backbone']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONE_NAMES), choices=BACKBONE_NAMES)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--views", default="1", help="N of a call (default: 1)")
    parser.add_argument("--rounds", default="12")
    parser.add_argument("--seconds", default="75", help="for each backbone; the compiler's time comes on top")
    parser.add_argument("--again", action="store_true")
    flags = parser.parse_args()
    documents = [measure(backbone, flags) for backbone in flags.backbones]
    first = documents[0]
    print(
        f"\n{first['clip']}, {flags.views} in a call, {first['threads']} threads, {first['machine']['processor']}, "
        f"median ms and ratio\nto PyTorch eager (quartiles), {flags.precision}, {first['created_at'][:10]}:"
    )
    print(
        "; ".join(f"{engine['engine']}: {engine['name']}" for engine in first["engines"] if not engine["failure"]), "\n"
    )
    print(f"| backbone | {' | '.join(flags.engines)} |")
    print("|---" * (1 + len(flags.engines)) + "|")
    for document in documents:
        print(line(document, flags.engines))


if __name__ == "__main__":
    main()
