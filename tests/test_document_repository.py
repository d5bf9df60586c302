"""Documents in PostgreSQL: kept under their hash, once, and pinned."""

from __future__ import annotations

import asyncio

import pytest

from app.domain.documents import DocumentError, content_hash, shipped
from app.infrastructure.persistence.session import Database
from app.infrastructure.repositories.document_repository import DocumentRepository
from tests.conftest import Rows

POLICY = shipped("policy", "v2")
MINE = POLICY.replace("name: v2", "name: mine").replace("pasted_problem: 30", "pasted_problem: 10")


async def test_a_document_is_kept_once_under_its_hash(database: Database, rows: Rows) -> None:
    async with database.transaction() as db:
        documents = DocumentRepository(db)
        assert await documents.put("policy", "v2", POLICY) == content_hash(POLICY)
    async with database.transaction() as db:
        documents = DocumentRepository(db)
        assert await documents.put("policy", "v2", POLICY) == content_hash(POLICY)
        kept = await documents.get(content_hash(POLICY))
        assert kept is not None
        assert (kept.kind, kept.name, kept.content) == ("policy", "v2", POLICY)
        assert await documents.content("policy", kept.hash) == POLICY
        assert await documents.get("0" * 64) is None
    assert rows.one("SELECT count(*) FROM evaluation_documents")["count"] == 1


async def test_many_at_once_keep_one(database: Database, rows: Rows) -> None:
    async def keep() -> str:
        async with database.transaction() as db:
            return await DocumentRepository(db).put("policy", "mine", MINE)

    assert set(await asyncio.gather(*[keep() for _ in range(10)])) == {content_hash(MINE)}
    assert rows.one("SELECT name, content FROM evaluation_documents") == {"name": "mine", "content": MINE}


async def test_a_shipped_document_is_kept_when_it_is_first_pinned(database: Database, rows: Rows) -> None:
    async with database.transaction() as db:
        documents = DocumentRepository(db)
        assert await documents.pin("policy", "v2") == content_hash(POLICY)
        assert await documents.pin("rubric", content_hash(shipped("rubric", "standard"))[:12]) == content_hash(
            shipped("rubric", "standard")
        )
    assert [row["name"] for row in rows("SELECT name FROM evaluation_documents ORDER BY name")] == ["standard", "v2"]


async def test_ones_own_document_is_pinned_by_its_hash(database: Database) -> None:
    async with database.transaction() as db:
        documents = DocumentRepository(db)
        with pytest.raises(DocumentError, match="no policy"):
            await documents.pin("policy", content_hash(MINE))
        key = await documents.put("policy", "mine", MINE)
        assert await documents.pin("policy", key) == key
        for kind, which in [("rubric", key), ("rubric", "v2"), ("policy", "mine"), ("policy", "%"), ("policy", "\x00")]:
            with pytest.raises(DocumentError, match=f"no {kind}"):
                await documents.pin(kind, which)  # type: ignore[arg-type]  # a literal
        with pytest.raises(DocumentError, match="no rubric"):
            await documents.content("rubric", key)


async def test_what_cannot_be_used_is_not_kept(database: Database, rows: Rows) -> None:
    async with database.transaction() as db:
        documents = DocumentRepository(db)
        with pytest.raises(DocumentError, match="samples: must be from 1 to 9"):
            await documents.put("policy", "v2", POLICY.replace("samples: 3", "samples: 0"))
        with pytest.raises(DocumentError, match="name: is not 'v3'"):
            await documents.put("policy", "v3", POLICY)
        with pytest.raises(DocumentError, match="name: must look like"):
            await documents.put("prompt", "My Prompt " * 9, shipped("prompt", "judge.en"))
    assert rows("SELECT * FROM evaluation_documents") == []


async def test_documents_are_listed_by_kind_and_name(database: Database) -> None:
    for kind, name, content in [
        ("policy", "v2", POLICY),
        ("policy", "mine", MINE),
        ("prompt", "judge.ko", shipped("prompt", "judge.ko")),
        ("policy", "mine", f"{MINE}# again\n"),
    ]:
        async with database.transaction() as db:
            await DocumentRepository(db).put(kind, name, content)  # type: ignore[arg-type]  # a literal
    async with database.transaction() as db:
        documents = DocumentRepository(db)
        listed = await documents.list_documents()
        assert [entry.name for entry in listed] == ["v2", "mine", "judge.ko", "mine"]
        assert [entry.name for entry in await documents.list_documents("policy", limit=2)] == ["v2", "mine"]
        versions = await documents.list_documents("policy", "mine")
        assert [entry.content for entry in versions] == [MINE, f"{MINE}# again\n"]
        assert [entry.name for entry in await documents.starting_with(content_hash(POLICY)[:10])] == ["v2"]
        assert await documents.starting_with("%") == []
        assert len(await documents.starting_with("")) == 2
