"""Shadow mode: a second artifact gets a copy of the live requests; only whether it agrees leaves the server.

It changes no answer: it starts after it, at the lowest priority, and while it is busy further requests pass it by,
counted as dropped. A later request waits at most for the one clip or batch of the shadow's that has begun. Requests of
a session are not copied (the shadow would need all views anew), nor what the canary answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import numpy as np

from mvfoul.errors import MVFoulError
from mvfoul.prediction import Prediction, make_prediction
from serving.call import BULK, Call
from serving.engine import Answer, Engine, Inputs
from serving.generation import Generation

_MAX_PENDING: Final = 2

COMPARED, DROPPED, FAILED = "compared", "dropped", "failed"
SHADOW_OUTCOMES: Final = (COMPARED, DROPPED, FAILED)

log = logging.getLogger("mvfoul.serving")

Observer = Callable[[str, Prediction | None, Prediction], None]
"""Gets an outcome, the shadow's prediction (where there is one) and the answer that went out."""


class Shadow:
    """Compares the artifact of one generation with the answers given."""

    def __init__(self, engine: Engine, generation: Generation, observe: Observer) -> None:
        self.generation = generation
        self._engine = engine
        self._observe = observe
        self._pending: set[asyncio.Task[None]] = set()

    def offer(self, inputs: Inputs, answer: Answer) -> None:
        """Compare in the background, if there is room."""
        if answer.session is not None or answer.role != "primary":
            return
        if len(self._pending) >= _MAX_PENDING or self._wants_another_shape(inputs):
            self._observe(DROPPED, None, answer.prediction)
            return
        task = asyncio.get_running_loop().create_task(self._compare(inputs, answer))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def aclose(self) -> None:
        """Give up what is under way and close the generation."""
        for task in tuple(self._pending):
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        self.generation.retire()
        await self.generation.closed()

    def _wants_another_shape(self, inputs: Inputs) -> bool:
        return isinstance(inputs, np.ndarray) and inputs.shape[1:] != self.generation.clip.view_shape

    async def _compare(self, inputs: Inputs, answer: Answer) -> None:
        call = Call(request_id="shadow", priority=BULK)
        generation = self.generation
        try:
            with generation.in_use():
                if not isinstance(inputs, np.ndarray):
                    inputs = await self._engine.decoder.decode(inputs, generation.clip, call)
                scores = (await generation.backend.score(inputs, None, call)).scores
            shadow = make_prediction(
                scores.action_probabilities, scores.offence_severity_probabilities, scores.view_weights
            )
        except MVFoulError as error:
            log.warning("shadow artifact %s failed: %s", generation.artifact.version, error)
            self._observe(FAILED, None, answer.prediction)
        except Exception:
            # An engine's own exception, or a bug: nobody else would hear of it.
            log.exception("shadow artifact %s failed", generation.artifact.version)
            self._observe(FAILED, None, answer.prediction)
        else:
            self._observe(COMPARED, shadow, answer.prediction)
