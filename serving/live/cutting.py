"""One camera's view of a contact: wait for its pictures, cut them out, or say why it is masked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

from serving.live.camera import Camera, CutError
from serving.live.incident import View
from serving.live.watch import FAULTS

_NOT_COMING: Final = ("gone", "connecting")
"""What is in the buffer may still do; nothing more is waited for."""


@dataclass(frozen=True, kw_only=True)
class DeskSettings:
    """How long to wait, and how far a cut reaches."""

    operator: str = "operator"
    after_s: float = 1.1
    wait_s: float = 3.0


def cut_view(camera: Camera, contact_s: float, settings: DeskSettings) -> View:
    """Return the view, ready or masked; never fails."""
    start = time.monotonic()
    health = camera.health()
    view = View(camera.spec.name, "camera", "masked", f"{health.state}: {health.reason}".rstrip(": "))
    if health.state == "wrong_codec":
        pass
    elif seen := camera.picture_at(contact_s):
        view = replace(view, reason=f"{seen}: {FAULTS[seen]}")
    else:
        if health.state not in _NOT_COMING:
            camera.wait_for(contact_s + settings.after_s, settings.wait_s)
        waited = time.monotonic()
        try:
            cut = camera.cut(contact_s, after_s=settings.after_s)
            view = View(camera.spec.name, "camera", "ready", data=cut.data)
            if seen := camera.picture_at(contact_s):  # seen while it waited
                view = replace(view, state="masked", data=b"", reason=f"{seen}: {FAULTS[seen]}")
        except CutError as error:
            view = replace(view, reason=str(error))
        view.wait_s, view.cut_s = waited - start, time.monotonic() - waited
    view.ready_at_s = time.monotonic()
    return view
