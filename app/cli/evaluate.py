"""``turnstone evaluate``: judgements looked at, made again, and made known."""

from __future__ import annotations

import asyncio
import getpass
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import (
    LARGEST_ID,
    AsJson,
    SessionId,
    is_file,
    is_text,
    loading,
    no_such,
    read_settings,
    say,
    when,
    with_database,
)
from app.cli.evaluation_lines import compare, show_run
from app.core.errors import StartupError
from app.domain.judge_names import JUDGES, is_judge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.application.services.evaluation_service import EvaluationService, RerunOrder
    from app.core.settings import Settings
    from app.domain.documents import DocumentKind
    from app.domain.judge_prompt import Shape

cli = typer.Typer(help="Judgements of candidates' prompts: look, judge again, publish.", no_args_is_help=True)

_POLL_S = 0.5
_LONGEST_DOCUMENT_BYTES = 800_001
"""One more than any document has, so that a longer file is found out."""
_HASH_BEGINNING = 8
Which = typer.Option(metavar="NAME|HASH|FILE")
Turn = Annotated[int, typer.Argument(min=1, max=2**31 - 1, help="The turn's number.")]


@cli.command("status")
def status(as_json: AsJson = False) -> None:
    """Say how many judgements wait, and what became of the others; and the newest re-runs."""

    async def show() -> None:
        from dataclasses import asdict

        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.evaluation_repository import EvaluationRepository

        async with get_db_context() as db:
            evaluations = EvaluationRepository(db)
            counts, batches = await evaluations.counts(), await evaluations.batches()
        if as_json:
            typer.echo(json.dumps(asdict(counts)))
            return
        oldest = f", the oldest for {counts.oldest_s:.0f} s" if counts.waiting else ""
        typer.echo(f"waiting {counts.waiting}{oldest}; scored {counts.scored}; unscored {counts.unscored}")
        typer.echo(f"to be looked at by people {counts.to_review}")
        for batch, begun, runs, waiting, published in batches:
            typer.echo(f"{batch}  {when(begun)}  {runs} turns, {waiting} waiting, {published} published")

    with_database(show)


@cli.command("show")
def show_judgements(
    session_id: SessionId,
    turn: Annotated[int | None, typer.Argument(min=1, max=2**31 - 1, help="The turn's number.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a session's judgements, or one turn's with every criterion."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.evaluation_repository import CallsSummary, EvaluationRepository
        from app.infrastructure.repositories.session_repository import SessionRepository
        from app.infrastructure.repositories.turn_repository import TurnRepository
        from app.presentation.schemas.evaluation_bodies import EvaluationBody

        async with get_db_context() as db:
            if await SessionRepository(db).get_session(session_id) is None:
                raise no_such("session", session_id)
            runs = await EvaluationRepository(db).runs(session_id, turn, limit=100_000)
            calls = await EvaluationRepository(db).calls_of([run.id for run in runs])
            turn_ids = await TurnRepository(db).client_ids(session_id, {run.judged_turn for run in runs})
        for run in runs:
            if as_json:
                body = EvaluationBody.of(run, turn_ids.get(run.judged_turn), calls.get(run.id, CallsSummary()))
                typer.echo(body.model_dump_json())
            else:
                show_run(run, whole=turn is not None)

    with_database(show)


@cli.command("rerun")
def rerun(
    exam: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="All turns of this exam.")] = None,
    session: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="All turns of this session.")] = None,
    rubric: Annotated[str | None, Which] = None,
    prompt: Annotated[str | None, Which] = None,
    policy: Annotated[str | None, Which] = None,
    samples: Annotated[int | None, typer.Option(min=1, max=9, help="Independent judgements of each prompt.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Another judge, provider:model.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Tell Core when all is judged.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Judge here, or leave it to a service.")] = True,
) -> None:
    """Judge prompts again, beside what there is, and say what would change. Nothing is told before it is published."""
    if exam is None and session is None:
        raise typer.BadParameter("say which: --exam, --session or both.")
    if publish and not wait:
        raise typer.BadParameter("--publish needs the judgements: leave out --no-wait.")

    documents = _Document.of(rubric), _Document.of(prompt), _Document.of(policy)
    if judge_model is not None and not (is_text(judge_model) and is_judge(judge_model)):
        raise StartupError(f"{judge_model} is no judge.", f"It is {JUDGES}.")

    async def judge_again() -> None:
        from app.application.services.evaluation_service import RerunOrder
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.session_repository import SessionRepository

        settings = read_settings(quiet=True)
        if session is not None:
            async with get_db_context() as db:
                if await SessionRepository(db).get_session(session) is None:
                    raise no_such("session", session)
        order = RerunOrder(
            exam_id=exam,
            session_id=session,
            rubric=await _pin("rubric", documents[0]),
            prompt=await _pin("prompt", documents[1]),
            policy=await _pin("policy", documents[2]),
            samples=samples,
            model=judge_model,
            asked_by=_who(),
        )
        service = await _service(settings)
        await _check(service, order)
        batch, count = "", 0
        async for batch, count in service.record_rerun(order):  # noqa: B007  # the last ones are wanted
            say(f"{count} turns to judge")
        if not count:
            typer.echo("There is no turn to judge.")
            return
        typer.echo(batch)
        if not wait:
            return
        await _judge(settings, batch, count)
        await _tell_changes(service, batch)
        if publish:
            await _publish(service, batch)
        else:
            say(f"`turnstone evaluate publish {batch}` tells Core")

    with_database(judge_again)


@cli.command("diff")
def diff(batch: Annotated[str, typer.Argument(help="The re-run's name.")]) -> None:
    """Say what a re-run would change."""

    async def show() -> None:
        service = await _service(read_settings(quiet=True))
        await _counts(batch)
        await _tell_changes(service, batch)

    with_database(show)


@cli.command("publish")
def publish_batch(batch: Annotated[str, typer.Argument(help="The re-run's or the appeal's name.")]) -> None:
    """Tell Core of a re-run, each turn under its next revision. What was told is not told again."""

    async def tell() -> None:
        service = await _service(read_settings(quiet=True))
        _, waiting, _ = await _counts(batch)
        if waiting:
            raise StartupError(
                f"{waiting} judgements of {batch} are still to be made.",
                "A running `turnstone serve` or `turnstone worker` makes them; `turnstone evaluate status` tells.",
            )
        await _tell_changes(service, batch)
        await _publish(service, batch)

    with_database(tell)


@cli.command("override")
def override(
    session_id: SessionId,
    turn: Turn,
    score: Annotated[float, typer.Option(min=0, max=100, help="0 to 100.")],
    reason: Annotated[str, typer.Option(help="Why; Core is told.")],
    person: Annotated[str, typer.Option(help="Who says so.")],
) -> None:
    """Set a person's score of a turn. The machine's stays beside it; Core is told under the next revision."""
    _check_said(reason, person)

    async def set_it(service: EvaluationService, turn_id: str) -> None:
        row = await service.override(session_id, turn_id, score, reason, person)
        typer.echo(f"turn {turn} of session {session_id} is {score:g} from revision {row.revision} on")

    _of_turn(session_id, turn, set_it)


@cli.command("appeal")
def appeal(
    session_id: SessionId,
    turn: Turn,
    person: Annotated[str, typer.Option(help="Who asks.")],
    reason: Annotated[str, typer.Option(help="Why it should be looked at again.")] = "no reason given",
) -> None:
    """Have a turn judged once more, with more samples, for people to look at; `evaluate publish` tells Core."""
    _check_said(reason, person)

    async def ask(service: EvaluationService, turn_id: str) -> None:
        item_id, run = await service.appeal(session_id, turn_id, reason, person)
        typer.echo(f"turn {turn} of session {session_id} is judged again as {run.batch}; review {item_id} is open")

    _of_turn(session_id, turn, ask)


def _check_said(reason: str, person: str) -> None:
    if not all(is_text(said) and said.strip() for said in (reason, person)):
        raise typer.BadParameter("--reason and --person have to say something.")


def _of_turn(session_id: int, turn: int, action: Callable[[EvaluationService, str], Awaitable[None]]) -> None:
    """Do something about a turn, which is given to it by its client's id."""

    async def act() -> None:
        from app.core.errors import TurnstoneError
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.turn_repository import TurnRepository

        service = await _service(read_settings(quiet=True))
        async with get_db_context() as db:
            turn_id = (await TurnRepository(db).client_ids(session_id, {turn})).get(turn)
        if turn_id is None:
            problem = f"There is no turn {turn} in a session {session_id}."
            raise StartupError(problem, f"`turnstone sessions show {session_id}` shows which there are.")
        try:
            await action(service, str(turn_id))
        except TurnstoneError as error:
            raise StartupError(error.message, f"`turnstone evaluate show {session_id}` shows what is judged.") from None

    with_database(act)


async def _service(settings: Settings) -> EvaluationService:
    from app.application.evaluation.basis import default_basis
    from app.application.services.evaluation_service import EvaluationService

    basis = await default_basis(settings.judge.model, settings.judge.trials)
    return EvaluationService(basis, held=settings.callbacks.url is None)


@dataclass(frozen=True)
class _Document:
    """What an option names: something shipped or kept, or a file with its text.

    A file's ``name`` is for a document that gives itself none.
    """

    name: str
    text: str | None = None

    @classmethod
    def of(cls, which: str | None) -> _Document | None:
        if which is None:
            return None
        return cls(Path(which).stem, _read(Path(which))) if is_file(which) else cls(which)


async def _pin(kind: DocumentKind, which: _Document | None) -> str | None:
    """The hash of a document, which is kept from now on."""
    from app.domain.document_reading import name_of, read_document
    from app.domain.documents import DocumentError
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.document_repository import DocumentRepository

    if which is None:
        return None
    if not is_text(which.name):
        raise StartupError(f"The {kind} is named by no text.", "`turnstone rubric list` shows which there are.")
    try:
        async with get_db_context() as db:
            documents = DocumentRepository(db)
            shape: Shape | None = "judge" if kind == "prompt" else None
            if which.text is not None:
                own_name = name_of(read_document(kind, which.text))
                key = await documents.put(kind, own_name or which.name, which.text)
                return await documents.pin(kind, key, shape=shape)
            kept = await documents.starting_with(which.name) if len(which.name) >= _HASH_BEGINNING else []
            return await documents.pin(kind, kept[0].hash if len(kept) == 1 else which.name, shape=shape)
    except DocumentError as error:
        raise StartupError(f"{error.message}.", "`turnstone rubric lint` checks a file.") from None


async def _check(service: EvaluationService, order: RerunOrder) -> None:
    """Refuse at once what would leave every turn without a score a day later."""
    from app.core.errors import TurnstoneError

    try:
        await service.check(order)
    except TurnstoneError as error:
        raise StartupError(f"{error.message}.", "Choose another rubric, or add the text to yours.") from None


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_LONGEST_DOCUMENT_BYTES).decode("utf-8")
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}.", "Choose another file.") from None
    except UnicodeDecodeError:
        raise StartupError(f"{file} is no text in UTF-8.", "Save it as UTF-8.") from None


async def _judge(settings: Settings, batch: str, count: int) -> None:
    with loading():
        from app.bootstrap import open_judging
    done = -1
    async with open_judging(settings, batch=batch):
        while done < count:
            _, waiting, _ = await _counts(batch)
            if count - waiting != done:
                done = count - waiting
                say(f"{done} of {count} judged")
            await asyncio.sleep(_POLL_S if done < count else 0)


async def _counts(batch: str) -> tuple[int, int, int]:
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.evaluation_repository import EvaluationRepository

    async with get_db_context() as db:
        counts = await EvaluationRepository(db).batch_counts(batch) if is_text(batch) else (0, 0, 0)
    if not counts[0]:
        raise StartupError(f"There is no re-run {batch}.", "`turnstone evaluate status` shows which there are.")
    return counts


async def _tell_changes(service: EvaluationService, batch: str) -> None:
    """One line for each turn that changes, and a summary."""
    kinds = {"higher": 0, "lower": 0, "the same": 0, "scored now": 0, "without a score now": 0, "waiting": 0}
    async for change in service.changes(batch):
        kind, line = compare(change)
        kinds[kind] += 1
        if line:
            typer.echo(line)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    typer.echo(f"{sum(kinds.values())} turns: {counted}")
    if kinds["without a score now"]:
        say("turns that would lose their score are left out when it is published")


async def _publish(service: EvaluationService, batch: str) -> None:
    count = 0
    async for count in service.publish(batch):
        if count % 50 == 0:
            say(f"{count} told")
    typer.echo(f"{count} judgements are on their way to Core")
    every, _, published = await _counts(batch)
    if every > published:
        say(f"{every - published} are left out: Core would lose a score, or knows a judgement that was asked for later")


def _who() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
