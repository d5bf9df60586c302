"""Exams: their settings as they are, and every version that they once were."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert

from app.domain.exam_settings import ExamSettings
from app.infrastructure.persistence.models import Exam, ExamVersion
from app.infrastructure.persistence.session import Transaction

_LARGEST_VERSION = 2**31 - 1


class ExamRepository:
    """Reads and writes exams within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def put(self, exam_id: int, settings: ExamSettings) -> int:
        """Make these the exam's settings; returns their version, a new one only where something has changed.

        What was known of an exam before there were versions has none, so the first version that is put is 1.
        """
        await self._db.execute(pg_insert(Exam).values(id=exam_id, problem_text="").on_conflict_do_nothing())
        await self._db.execute(select(Exam.id).where(Exam.id == exam_id).with_for_update())
        newest = await self._newest(exam_id)
        content = settings.content_hash
        if newest is not None and newest.content_hash == content:
            return newest.version
        version = 1 if newest is None else newest.version + 1
        values = {"problem_text": settings.problem_text, "settings": settings.to_json(), "version": version}
        self._db.add(ExamVersion(exam_id=exam_id, content_hash=content, **values))
        await self._db.flush()
        await self._db.execute(update(Exam).where(Exam.id == exam_id).values(**values, updated_at=func.now()))
        return version

    async def get(self, exam_id: int) -> Exam | None:
        """The exam as it is now."""
        return await self._db.get(Exam, exam_id, populate_existing=True)

    async def get_version(self, exam_id: int, version: int) -> ExamVersion | None:
        """The exam as it once was."""
        return await self._db.get(ExamVersion, (exam_id, version))

    async def list_versions(self, exam_id: int, *, after: int = 0, limit: int = 100) -> Sequence[ExamVersion]:
        """Versions above ``after``, oldest first."""
        statement = (
            select(ExamVersion)
            .where(ExamVersion.exam_id == exam_id, ExamVersion.version > min(after, _LARGEST_VERSION))
            .order_by(ExamVersion.version)
            .limit(limit)
        )
        return (await self._db.scalars(statement)).all()

    async def settings_of(self, exam_id: int, version: int | None) -> ExamSettings | None:
        """Settings of a version; with ``None`` what is known of the exam now. ``None`` where nothing is."""
        found: Exam | ExamVersion | None = None
        if version is not None:
            found = await self.get_version(exam_id, version)
        if found is None:
            found = await self.get(exam_id)
        return None if found is None else ExamSettings.from_json(found.problem_text, found.settings)

    async def _newest(self, exam_id: int) -> ExamVersion | None:
        statement = select(ExamVersion).where(ExamVersion.exam_id == exam_id)
        return (await self._db.scalars(statement.order_by(ExamVersion.version.desc()).limit(1))).first()
