"""A judge's prompt and a rubric that the small model on a busy machine has read in seconds."""

from __future__ import annotations

from app.domain.scoring import Criterion, Intent
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository

_PROMPT = """=== system ===
Mark the prompt by the rubric with one JSON object of this schema: {{schema}}
{{rubric}}
=== user ===
{{fence_open}}
{{conversation}}
{{fence_close}}
{{fence_open}}
{{candidate}}
{{fence_close}}
{{reminder}}
"""
_ANCHORS = "anchors: {1: none, 2: little, 3: some, 4: much, 5: all}"
_RUBRIC = f"""kind: rubric
name: short
en:
  criteria: {{{", ".join(f"{name}: {{title: {name}, question: good, {_ANCHORS}}}" for name in Criterion)}}}
  hints: {{{", ".join(f"{intent}: none" for intent in Intent)}}}
"""


async def store_short_documents() -> dict[str, str]:
    """Make them known; returns what an exam that uses them says."""
    async with get_db_context() as db:
        documents = DocumentRepository(db)
        return {
            "judge_prompt": await documents.put("prompt", "short", _PROMPT),
            "rubric": await documents.put("rubric", "short", _RUBRIC),
        }
