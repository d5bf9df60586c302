"""The declarative base and the column types that several tables share."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import BigInteger, Enum, Identity, MetaData, String, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables. Constraints have names, so that migrations can name them too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def word_of(enum: type[StrEnum], name: str) -> Enum:
    """A text column with a check that holds it to the enum's values; read back as the enum."""
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=24,
        values_callable=lambda members: [member.value for member in members],
    )


BigId = Annotated[int, mapped_column(BigInteger, Identity(), primary_key=True)]
Big = Annotated[int, mapped_column(BigInteger)]
Moment = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True), server_default=func.now())]
MaybeMoment = Annotated[datetime | None, mapped_column(TIMESTAMP(timezone=True))]
Json = Annotated[dict[str, Any], mapped_column(JSONB, server_default="{}")]


class SchemaReach(Base):
    """One row: the oldest program, by the newest migration it has, that these tables still serve.

    So a program that does not know the tables' version yet knows whether it may run on them, as it must while a new
    version is rolled out.
    """

    __tablename__ = "schema_reach"

    oldest_program: Mapped[str] = mapped_column(String(32), primary_key=True)
