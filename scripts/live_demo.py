"""The live console on recorded scenes: cameras over loopback, triggers by themselves, decisions printed and shown.

    python scripts/live_demo.py                        what `make demo` made, until Ctrl-C
    python scripts/live_demo.py --decisions 3          ends by itself
    python scripts/live_demo.py --data DIR --artifact DIR

Each action is played by three cameras at once (RTSP, with the sender's clock). When its contact is over, the console is
triggered for it over HTTP, as a person would by key.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.live_rig import Rig, RigError, running_rig

AFTER_CONTACT_S = 1.3
_WAIT_S = 60.0
_EMPTY_WAITS = 3
"""An action lasts seconds; when so many waits bring none, none will come."""


def main() -> int:
    """Run the demo; return the exit code."""
    options = _parse()
    if fault := _fault(options):
        print(f"error: {fault}", file=sys.stderr)
        return 2
    actions: queue.Queue[dict[str, Any]] = queue.Queue()
    streams = ("--data", str(options.data), "--protocol", "rtsp", "--actions", str(options.actions))
    console = ("--http-port", str(options.http_port), "--audit-dir", str(options.audit), "--log-level", "warning")
    try:
        with running_rig(options.artifact, streams, console, on_action=actions.put) as rig:
            print(f"the console's page: {rig.url}\n", flush=True)
            if sys.stdout.isatty() and os.environ.get("DISPLAY"):
                webbrowser.open(rig.url)
            decided = _decide(rig, actions, options)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 0
    print(f"\n{decided} decisions; the audit log: python -m serving.live.audit verify {options.audit}")
    return 0 if decided else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="actions in the official layout")
    parser.add_argument("--artifact", type=Path, default=Path("runs/demo/artifact"), help="what decides")
    parser.add_argument("--audit", type=Path, default=Path("runs/live-demo/audit"), help="where decisions are kept")
    parser.add_argument("--actions", type=int, default=5, help="how many actions are played over and over")
    parser.add_argument("--http-port", type=int, default=8090, help="of the page; 0 takes a free one")
    parser.add_argument(
        "--decisions", type=int, default=0 if sys.stdout.isatty() else 3, help="end after so many; 0: never"
    )
    parser.add_argument("--seconds", type=float, default=0, help="end after so many; 0: never")
    return parser.parse_args()


def _fault(options: argparse.Namespace) -> str:
    for path, flag in ((options.artifact, "ARTIFACT"), (options.data, "DATA")):
        if not path.is_dir():
            return f"{path} is not there. Run `make demo` first, or pass {flag}=<folder>."
    return ""


def _decide(rig: Rig, actions: queue.Queue[dict[str, Any]], options: argparse.Namespace) -> int:
    """Trigger for each action after its contact; return how many were decided."""
    started, decided, empty = time.monotonic(), 0, 0
    while not (options.decisions and decided >= options.decisions):
        left_s = options.seconds - (time.monotonic() - started) if options.seconds else _WAIT_S
        if left_s <= 0:
            break
        try:
            action = actions.get(timeout=min(left_s, _WAIT_S))
        except queue.Empty:
            empty += 1
            if empty >= _EMPTY_WAITS:
                raise RigError(f"no action began for {empty * _WAIT_S:g} s: the stream server has stopped") from None
            continue
        empty = 0
        if not _can_be_cut(rig, action["contact_s"]):
            continue
        time.sleep(max(0.0, action["contact_s"] + AFTER_CONTACT_S - time.time()))
        name = rig.post("/api/trigger", {"contact_s": action["contact_s"], "note": action["action"]})["id"]
        incident = rig.decided(name)
        decided += bool(incident["rulings"])
        _show(incident, action, options.data)
    return decided


def _can_be_cut(rig: Rig, contact_s: float) -> bool:
    """Whether a camera was on air three seconds before the contact: the first action begins before they are."""
    cameras = rig.get("/api/state")["cameras"]
    return any(camera["buffer_s"] > time.time() - contact_s + 3.2 for camera in cameras)


def _show(incident: dict[str, Any], action: dict[str, Any], data: Path) -> None:
    print(f"{action['action']}   annotated: {_truth(action, data)}")
    for ruling in incident["rulings"]:
        document, stages = ruling["document"], ruling["stages_s"]
        heads = ", ".join(_head(document[head]) for head in ("action", "offence_severity"))
        print(f"  {1000 * stages['total']:6.0f} ms after the trigger, {len(ruling['views'])} views: {heads}")
    masked = [f"{view['name']} ({view['reason']})" for view in incident["views"] if view["state"] == "masked"]
    print(f"  masked: {', '.join(masked) or 'nobody'}" + (f"; {incident['message']}" if incident["message"] else ""))
    sys.stdout.flush()


def _head(head: dict[str, Any]) -> str:
    first = head["top2"][0]
    text = f"{first['label']} {first['probability']:.0%}"
    return f"abstains ({text})" if head["abstain"] else text


def _truth(action: dict[str, Any], data: Path) -> str:
    for path in (data / "annotations.json", *sorted(data.glob("*/annotations.json"))):
        folder = Path(next(iter(action["clips"].values()))).parent
        if path.parent == folder.parent:
            fields = json.loads(path.read_text())["Actions"].get(folder.name.removeprefix("action_"), {})
            return ", ".join(str(fields.get(key) or "-") for key in ("Action class", "Offence", "Severity"))
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
