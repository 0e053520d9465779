"""Puts recorded behavior right: each event's next version carries what is right, and the wrong one is deleted."""

from services.chassis.errors import Kind, ServiceError, invalid
from services.feedback.domain.rectification import Rectification, problem_of
from services.feedback.handlers.ports import RecordedBehavior, Schemas


class RectifyBehavior:
    """The use case."""

    def __init__(self, *, schemas: Schemas, recorded: RecordedBehavior) -> None:
        self._schemas = schemas
        self._recorded = recorded

    async def __call__(self, asked: Rectification) -> int:
        """How many events were put right by this request, this time and before.

        Raises:
            ServiceError: INVALID, naming the field; NOT_FOUND (EVENT_UNKNOWN); ALREADY_EXISTS (REQUEST_ID_REUSED);
                FAILED_PRECONDITION (SUBJECT_ERASED); UNAVAILABLE, after which it may be sent again.
        """
        problem = problem_of(asked, await self._schemas.book())
        if problem is not None:
            raise invalid(problem.field, problem.problem)
        if asked.event_id and not await self._recorded.holds(asked.event_id, asked.member_ids, asked.type):
            raise ServiceError(
                Kind.NOT_FOUND,
                "EVENT_UNKNOWN",
                "event_id: this person has no such event of this type; give one that Export lists",
            )
        return await self._recorded.put_right(asked)
