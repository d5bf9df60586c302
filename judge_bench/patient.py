"""A judge that is asked again where it could not be asked: one busy minute must not cost what was paid for before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from app.core.errors import ModelError
from app.domain.judging import JudgeAnswer, JudgeClient, JudgeRequest

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try of one call; a ``Retry-After`` that asks for more has it, up to `LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S: Final = 60.0
GONE_AFTER: Final = 20
"""A judge is gone after this many calls in a row that failed for good: more than one family of attacks has."""


class PatientJudge:
    """Asks again after a pause where an error says that this may help.

    Once `GONE_AFTER` calls in a row have failed for good, every further one fails at once, so that a bench whose
    endpoint is down ends in minutes and not in hours.

    Args:
        judge: who is asked.
        pauses_s: seconds before each further try.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        judge: JudgeClient,
        pauses_s: Sequence[float] = PAUSES_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._judge = judge
        self._pauses_s = pauses_s
        self._sleep = sleep
        self._failed_in_a_row = 0
        self._last_error: ModelError | None = None

    @property
    def model(self) -> str:
        """Name under which calls are stored."""
        return self._judge.model

    @property
    def gone(self) -> ModelError | None:
        """Why the judge is asked no more, once it is not."""
        return self._last_error if self._failed_in_a_row >= GONE_AFTER else None

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        """See `app.domain.judging.JudgeClient.complete`; one call, and as many tries as there are pauses, and one."""
        if (error := self.gone) is not None:
            raise error
        try:
            answer = await self._tried(request)
        except ModelError as error:
            self._failed_in_a_row += 1
            self._last_error = error
            raise
        self._failed_in_a_row = 0
        return answer

    async def aclose(self) -> None:
        """Close the judge."""
        await self._judge.aclose()

    async def _tried(self, request: JudgeRequest) -> JudgeAnswer:
        for pause_s in self._pauses_s:
            try:
                return await self._judge.complete(request)
            except ModelError as error:
                if not error.retryable:
                    raise
                wait_s = min(max(pause_s, error.retry_after_s or 0.0), LONGEST_PAUSE_S)
            await self._sleep(wait_s)
        return await self._judge.complete(request)
