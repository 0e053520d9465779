"""The proof of G19, in small: what cannot be read, in every log, table and stream, stops nobody."""

from comity.common.v1 import operations_pb2 as operations_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from bench.prove import poison
from cli.connections import Services
from cli.stack import SERVICES, Stack
from learning.log import replay_log
from tests.e2e.erasing import erase
from tests.e2e.people import CALL_S, item_ids, ranked_person
from tests.waiting import eventually


async def test_poison_everywhere_stops_nobody_and_is_told(stack: Stack, services: Services) -> None:
    """People decide, click, get their outcome and are erased as ever; every piece of poison is a dead letter."""
    planted = await poison.plant(stack)
    somebody = await ranked_person(services)
    clicked = (await somebody.click(item_ids((await somebody.decide()).decisions[0])[0]))[0]
    member_id = (await somebody.resolved()).member_id

    async def joined() -> bool:
        request = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_OUTCOME])
        outcomes = {
            (event.subject_id, event.outcome.item_id)
            async for page in replay_log(services.feedback, request)
            for event in page.events
        }
        return (member_id, clicked.item_ids[0]) in outcomes

    await eventually(joined, within_s=60)
    assert planted.count > 20
    assert await poison.untold(services, planted) == 0
    assert (await erase(somebody)).receipt
    for service in SERVICES:
        ids = [letter.id for letter in await poison.letters_of(services, service)]
        request = operations_pb.DiscardDeadLettersRequest(ids=ids)
        await services.operations(service).DiscardDeadLetters(request, timeout=CALL_S)
        assert not await poison.letters_of(services, service)
