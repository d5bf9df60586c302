"""Rubrics, judges' prompts and score policies, kept for ever under their hash."""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from app.domain.document_reading import find_shipped, name_of, read_document
from app.domain.documents import NAME, DocumentError, DocumentKind, DocumentProblem, content_hash
from app.domain.judge_prompt import JudgePrompt, Shape
from app.infrastructure.persistence.models import EvaluationDocument
from app.infrastructure.persistence.session import Transaction

_HASH_LENGTH = 64


class DocumentRepository:
    """Reads and writes documents within the transaction at hand. None is ever changed or removed."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def put(self, kind: DocumentKind, name: str, content: str) -> str:
        """Keep a document; returns its hash. What is kept already stays as it is, its first name too.

        Raises:
            DocumentError: it cannot be used, has another name in itself, or a name that none may have.
        """
        own_name = name_of(read_document(kind, content))
        if own_name not in (None, name):
            raise DocumentError(f"The {kind} cannot be kept", (DocumentProblem("name", f"is not {name[:64]!r}"),))
        if not re.fullmatch(NAME, name):
            raise DocumentError(f"The {kind} cannot be kept", (DocumentProblem("name", f"must look like {NAME}"),))
        key = content_hash(content)
        values = {"hash": key, "kind": kind, "name": name, "content": content}
        await self._db.execute(insert(EvaluationDocument).values(values).on_conflict_do_nothing())
        return key

    async def pin(self, kind: DocumentKind, name_or_hash: str, *, shape: Shape | None = None) -> str:
        """The hash to pin for what somebody names: something shipped, which is kept from now on, or a kept hash.

        Args:
            kind: of the document.
            name_or_hash: how it is named.
            shape: of a prompt: what it has to be for.

        Raises:
            DocumentError: there is none, or it is for something else.
        """
        found = find_shipped(name_or_hash)
        if found is not None and found[0] == kind:
            if shape is not None:
                JudgePrompt.parse(found[2], shape=shape)
            return await self.put(*found)
        kept = await self.get(name_or_hash)
        if kept is None or kept.kind != kind:
            remedy = "`turnstone rubric list --stored` shows which there are, `turnstone rubric store` keeps your own"
            raise DocumentError(f"There is no {kind} {name_or_hash[:_HASH_LENGTH]!r}; {remedy}")
        if shape is not None:
            JudgePrompt.parse(kept.content, shape=shape)
        return kept.hash

    async def get(self, key: str) -> EvaluationDocument | None:
        """The document of a hash."""
        return await self._db.get(EvaluationDocument, key) if len(key) == _HASH_LENGTH else None

    async def content(self, kind: DocumentKind, key: str) -> str:
        """The text of a document that was pinned.

        Raises:
            DocumentError: there is none of that kind and hash.
        """
        kept = await self.get(key)
        if kept is None or kept.kind != kind:
            raise DocumentError(f"There is no {kind} {key[:_HASH_LENGTH]!r}")
        return kept.content

    async def starting_with(self, beginning: str) -> list[EvaluationDocument]:
        """Documents whose hash begins so; two at most."""
        statement = select(EvaluationDocument).where(EvaluationDocument.hash.startswith(beginning, autoescape=True))
        return list(await self._db.scalars(statement.order_by(EvaluationDocument.hash).limit(2)))

    async def list_documents(
        self, kind: DocumentKind | None = None, name: str | None = None, *, limit: int = 100
    ) -> list[EvaluationDocument]:
        """Documents of a kind and name, oldest first."""
        statement = select(EvaluationDocument).order_by(EvaluationDocument.created_at, EvaluationDocument.hash)
        if kind is not None:
            statement = statement.where(EvaluationDocument.kind == kind)
        if name is not None:
            statement = statement.where(EvaluationDocument.name == name)
        return list(await self._db.scalars(statement.limit(limit)))
