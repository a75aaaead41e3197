"""Write the dashboards' JSON files.

python -m scripts.monitoring
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "k8s" / "monitoring" / "dashboards"


def main() -> int:
    """Write one file for each dashboard; return the exit code."""
    from scripts.monitoring.dashboards import DASHBOARDS
    from scripts.monitoring.grafana import to_json

    for board in DASHBOARDS:
        path = FOLDER / f"{board.uid.removeprefix('mvfoul-')}.json"
        path.write_text(to_json(board))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
