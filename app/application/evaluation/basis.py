"""What prompts are judged by, where neither their exam nor whoever asks for a re-run says otherwise."""

from __future__ import annotations

from typing import Any

from app.domain.judging.tasks import Trials
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.evaluation_repository import RunBasis
from app.infrastructure.repositories.turn_repository import JudgedBy

RUBRIC, PROMPTS, POLICY = "standard", {"en": "judge.en", "ko": "judge.ko"}, "v2"


async def default_basis(model: str | None, trials: str = Trials.SUSPICIOUS.value) -> JudgedBy:
    """The shipped documents, kept in the database from now on, and the judge of the settings."""
    async with get_db_context() as db:
        documents = DocumentRepository(db)
        return JudgedBy(
            rubric=await documents.pin("rubric", RUBRIC),
            prompt_en=await documents.pin("prompt", PROMPTS["en"]),
            prompt_ko=await documents.pin("prompt", PROMPTS["ko"]),
            policy=await documents.pin("policy", POLICY),
            model=model,
            trials=trials,
        )


def basis_of_exam(settings: dict[str, Any], default: JudgedBy) -> RunBasis:
    """What an exam's settings say, and the default for the rest: as a turn's end records it."""
    prompt = default.prompt_ko if settings.get("language") == "ko" else default.prompt_en
    chosen = {
        "model": settings.get("judge_model") or default.model,
        "samples": settings.get("samples"),
        "trials": default.trials,
    }
    return RunBasis(
        rubric=settings.get("rubric") or default.rubric,
        prompt=settings.get("judge_prompt") or prompt,
        policy=settings.get("score_policy") or default.policy,
        settings={name: value for name, value in chosen.items() if value is not None},
    )
