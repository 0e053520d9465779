"""What a newer release decided is neither judged nor refused to be read by this one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.chassis.errors import ServiceError
from services.decision.domain.record import DIGEST_FORMAT, SEMANTICS, DecisionRecord
from services.decision.wire.record import record_from_bytes, record_to_bytes
from tests.replay.reading import Kept, histories, load, newest_of

HISTORY = load(histories("decisions")[-1])


def by_next_semantics(record: DecisionRecord) -> DecisionRecord:
    return replace(record, versions=replace(record.versions, semantics=SEMANTICS + 1))


def in_next_digest_format(record: DecisionRecord) -> DecisionRecord:
    return replace(record, digest_format=DIGEST_FORMAT + 1, digest=b"of the next format")


@pytest.mark.parametrize("made", [by_next_semantics, in_next_digest_format])
async def test_replay_says_that_a_newer_release_made_it(made: Callable[[DecisionRecord], DecisionRecord]) -> None:
    """And never that it differs: by which rules it was made is not known here."""
    kept = Kept(HISTORY)
    record = made(newest_of(HISTORY["decisions"][0]))
    kept.put(record_from_bytes(record_to_bytes(record), record.member_id))
    with pytest.raises(ServiceError) as told:
        await kept.inspect().replay(record.decision_id)
    assert told.value.reason == "NEWER_RELEASE"
    assert (await kept.inspect().explained(record)).steps
