"""One readable answer from a judge, which is asked again, and told what was wrong, where an answer cannot be used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from app.domain.judging.aside import aside
from app.domain.judging.tasks import JudgeCall, JudgeClient, JudgeRequest, Purpose, Said, UnreadableAnswerError
from app.domain.scoring import Unscored

ATTEMPTS: Final = 3
"""Calls for one readable answer; the second and third are told what was wrong with the one before."""
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Asked(Generic[Said]):
    """What came of one sample, and every call that was made for it."""

    said: Said | Unscored
    calls: tuple[JudgeCall[Said], ...]


async def ask(
    client: JudgeClient,
    build: Callable[[str | None], JudgeRequest],
    read: Callable[[str], Said],
    *,
    purpose: Purpose,
    sample: int,
) -> Asked[Said]:
    """Ask until an answer can be read, `ATTEMPTS` times at most.

    A sample that stays unreadable is `Unscored`, ``no evidence`` where only a quote was missing.

    Args:
        client: the judge.
        build: makes the request; its argument is what was wrong with the answer before.
        read: reads an answer; raises `UnreadableAnswerError`.
        purpose: for the record.
        sample: the sample's number, for the record.

    Raises:
        ModelError: the judge cannot be asked.
    """
    calls: list[JudgeCall[Said]] = []
    told: str | None = None
    no_evidence = False
    for attempt in range(ATTEMPTS):
        request = await aside(build, told)
        answer = await client.complete(request)
        try:
            said = await aside(read, answer.raw)
        except UnreadableAnswerError as error:
            told, no_evidence = error.reason, error.no_evidence
            calls.append(JudgeCall(purpose, sample, attempt, request, answer, None, told))
            continue
        calls.append(JudgeCall(purpose, sample, attempt, request, answer, said, None))
        return Asked(said, tuple(calls))
    return Asked(Unscored("no evidence" if no_evidence else f"unreadable answer: {told}"), tuple(calls))


async def at_once(asked: Iterable[Awaitable[_Value]]) -> list[_Value]:
    """All of these at the same time, in their order.

    Where one fails the others are waited for before its error is raised: what they bring is kept by the client.
    """
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def set_aside(calls: Iterable[JudgeCall[Said]]) -> list[JudgeCall[Said]]:
    """The calls, those for samples as calls for samples that do not count."""
    return [replace(call, purpose="set_aside") if call.purpose == "judge" else call for call in calls]
