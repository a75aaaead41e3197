"""`python -m serving.client`."""

from __future__ import annotations

import sys

from serving.client.command import main

if __name__ == "__main__":
    sys.exit(main())
