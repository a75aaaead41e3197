"""How `python -m export` and `python -m export.plan` end; the table is in docs/export.md."""

from __future__ import annotations

from typing import Final

from mvfoul.errors import MVFoulError, PlanError

PUBLISHED: Final = 0
REFUSED: Final = MVFoulError.exit_code
"""A flag, a checkpoint, an artifact or a disk is unusable."""
PARITY_FAILED: Final = 3
"""A check against the reference failed: nothing is published."""
NO_PLAN: Final = PlanError.exit_code
"""Everything but the TensorRT plan is published, and --allow-no-plan was not given."""
