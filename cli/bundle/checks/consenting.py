"""What a bundle declares about consent: judged by the rules of the consent service itself, with the lines."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from cli.bundle.bundle import Bundle, Declared
from cli.bundle.problem import Problem
from services.chassis.errors import ServiceError
from services.consent.domain.declaring import declare
from services.consent.domain.policy import Policy
from services.consent.wire import declaration_of

_FIELD = re.compile(r"(purposes|notices|jurisdictions)(?:\[(\d+)\](.*))?")


def unconsentable(bundle: Bundle) -> Iterator[Problem]:
    """What the service would refuse, and purposes that nobody could consent to."""
    yield from _refused(bundle)
    yield from _unnamed(bundle)


def _refused(bundle: Bundle) -> Iterator[Problem]:
    try:
        declare(Policy(), declaration_of(bundle.consent()), lambda _: "")
    except ServiceError as error:
        for found in error.problems:
            what, _, remedy = found.problem.partition("; ")
            match = _FIELD.fullmatch(found.field)
            assert match is not None, "the service names what it was sent"
            things: Sequence[Declared[Any]] = getattr(bundle, match[1])
            # Of the list as a whole: told at its first entry.
            thing, path = things[int(match[2] or 0)], match[3] or ""
            if (match[1], path) != ("purposes", ".id"):  # doubled ids of purposes are told with where the first stands
                yield thing.problem(path, what, remedy or "mend the declaration")


def _unnamed(bundle: Bundle) -> Iterator[Problem]:
    """Purposes that no notice in use names: nobody could be asked for them, or would be told (GDPR Art. 13)."""
    if not bundle.notices:
        return
    now = datetime.now(UTC)
    named = {
        purpose for notice in bundle.notices if not _is_retired(notice, now) for purpose in notice.message.purposes
    }
    for purpose in bundle.purposes:
        if purpose.message.id not in named:
            needed = "people must be asked" if purpose.message.legal_basis == "consent" else "people must be told"
            what = f"{purpose.message.id!r} is named by no notice in use, and {needed}"
            yield purpose.problem(".id", what, "name it in a notice of notices.yaml, under a new version")


def _is_retired(notice: Declared[Any], now: datetime) -> bool:
    message = notice.message
    return bool(message.HasField("retired_at") and message.retired_at.ToDatetime(tzinfo=UTC) <= now)
