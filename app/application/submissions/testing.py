"""Tests: the code is run on every test case of the frozen problem, and measured beside the reference."""

from __future__ import annotations

from dataclasses import replace

from app.application.submissions.grading import grade
from app.application.submissions.work import Made, Work
from app.domain.code_runner import CodeRunner, SourceProgram
from app.domain.grading import GradingOutcome
from app.domain.langgraph.submission_state import Outcomes
from app.domain.submission import Node, Outcome, Progress, PutOff
from app.domain.waiting import HOUR_S
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.problem_repository import ProblemRepository
from app.infrastructure.repositories.submission_claims import CaseRun, SubmissionClaims
from app.infrastructure.repositories.submission_repository import SubmissionRepository


async def run_tests(work: Work, came: Outcomes) -> Made | PutOff:
    """Grade the code.

    Raises:
        RunnerUnavailableError: nothing can be run now.
    """
    frozen, evaluation, tried = came[Node.FREEZE].value, work.evaluation, work.desk.runner
    if evaluation.spec_id is None or frozen["problem_version"] is None:
        return Made(Outcome.missing("no problem is set"))
    if tried is None:
        return Made(Outcome.missing("no code runner is set"))
    async with get_db_context() as db:
        problem = await ProblemRepository(db).problem(evaluation.spec_id, frozen["problem_version"])
        submission = await SubmissionRepository(db).find(str(evaluation.client_id))
    assert problem is not None and submission is not None, "versions stay, and an evaluation has a submission"

    def note(done: int, total: int) -> None:
        work.goes_on()
        work.reporter.note(Progress.of_cases(done, total))

    graded = await grade(
        tried.runner,
        problem,
        SourceProgram(submission.language, submission.code),
        isolation=await tried.isolation(),
        on_progress=note,
    )
    value = graded.to_json()
    value["performance"]["runs"] = []  # they are rows of their own

    async def keep_runs(db: Transaction) -> None:
        await SubmissionClaims(db).keep_case_runs(evaluation, _runs(graded))

    outcome = Outcome("ok" if graded.missing is None else "missing", value, graded.missing)
    versions = {
        "isolation": graded.isolation.backend,
        "level": graded.isolation.level,
        "toolchains": await _toolchains(tried.runner, {graded.language, graded.performance.reference_language}),
    }
    made = Made(replace(outcome, versions=versions), keep_runs)
    if graded.performance.fault == "runner" or any(case.fault == "runner" for case in graded.cases):
        # An hour is enough to mend a machine; then what is known counts.
        why = graded.missing or f"the running time could not be measured: {graded.performance.reason}"
        return PutOff(Node.TESTS, why, patience_s=HOUR_S, instead=made)
    return made


async def _toolchains(runner: CodeRunner, languages: set[str | None]) -> dict[str, str]:
    found = await runner.languages()
    return {name: toolchain.version for name, toolchain in found.items() if name in languages}


def _runs(graded: GradingOutcome) -> list[CaseRun]:
    """Every run: repetition 0 is the one that was graded, those from 1 on were measured."""
    isolation = f"{graded.isolation.backend} {graded.isolation.level}"
    cases = {case.index: case for case in graded.cases}
    runs = [
        CaseRun(
            program="candidate",
            repetition=0,
            case_index=case.index,
            case_name=case.name,
            case_group=case.group.value,
            weight=case.weight,
            verdict=case.verdict.value,
            cause=case.cause,
            cpu_ms=case.cpu_ms,
            wall_ms=case.wall_ms,
            memory_kb=case.memory_kb,
            stdout_bytes=case.stdout_bytes,
            stderr_bytes=case.stderr_bytes,
            exit_code=case.exit_code,
            signal=case.signal,
            isolation=isolation,
        )
        for case in graded.cases
    ]
    return runs + [
        CaseRun(
            program=run.program,
            repetition=run.repetition,
            case_index=run.index,
            case_name=cases[run.index].name,
            case_group=cases[run.index].group.value,
            weight=cases[run.index].weight,
            verdict=run.verdict,
            cause=run.cause,
            cpu_ms=run.cpu_ms,
            wall_ms=run.wall_ms,
            memory_kb=run.memory_kb,
            stdout_bytes=None,
            stderr_bytes=None,
            exit_code=None,
            signal=None,
            isolation=isolation,
        )
        for run in graded.performance.runs
    ]
