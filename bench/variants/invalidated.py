"""The wrong consent read of event-driven systems: verdicts are kept until an event says that something changed.

Nothing bounds how late the event is; while the channel is held up, a revocation is not heard of.
"""

import nats
from nats.aio.msg import Msg

import services.decision.main as wiring
from bench.variants.observed import observed
from bench.variants.remembering import Remembering, instead
from services.chassis.envelope import decode_batch
from services.chassis.lifecycle import App, run

CHANNELS = "ev.v1.*.consent.>"

_readers: list[Remembering] = []


class Invalidated(Remembering):
    """Believes an answer until it hears of a change."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        _readers.append(self)


async def build(settings: wiring.Settings, app: App) -> None:
    """The real service, and an ear for changes of consent."""
    await wiring.build(settings, app)
    client = await nats.connect(settings.nats_url, max_reconnect_attempts=-1)
    app.on_stop("invalidation", client.close)
    await client.subscribe(CHANNELS, cb=_forget)


async def _forget(message: Msg) -> None:
    """Drop what is remembered of the people whose consent changed."""
    changed = {event.subject_id for event in decode_batch(message.data)}
    for reader in _readers:
        for key in [key for key in reader.remembered if any(member in key for member in changed)]:
            del reader.remembered[key]


if __name__ == "__main__":
    with observed(), instead(Invalidated):
        run("decision", wiring.Settings, build)
