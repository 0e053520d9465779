"""Declares types of behavior: all of a publication, or none."""

from collections.abc import Sequence

from services.chassis.errors import Kind, ServiceError
from services.chassis.ids import content_hash
from services.feedback.domain.schemas import EventSchema, canonical, problems_of, with_published
from services.feedback.handlers.ports import Schemas

ATTEMPTS_MAX = 5


class PublishEventSchemas:
    """The use case."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    async def __call__(self, schemas: Sequence[EventSchema], *, validate_only: bool) -> str:
        """The version of everything declared, with the publication; validate_only changes nothing.

        Raises:
            ServiceError: INVALID (INVALID_EVENT_SCHEMAS) with each field that is wrong; CONFLICT when others
                publish at the same time, again and again.
        """
        for _ in range(ATTEMPTS_MAX):
            before = await self._schemas.book()
            problems = problems_of(schemas, before)
            if problems:
                text = "; ".join(f"{problem.field}: {problem.problem}" for problem in problems)
                raise ServiceError(Kind.INVALID, "INVALID_EVENT_SCHEMAS", text, problems=problems)
            after = with_published(before, schemas)
            version = content_hash(canonical(after))
            if validate_only or canonical(before) == canonical(after):
                return version
            if await self._schemas.publish(schemas, version=version, before=before):
                return version
        raise ServiceError(
            Kind.CONFLICT, "PUBLISHED_CONCURRENTLY", "Event schemas are being published by someone else; try again."
        )
