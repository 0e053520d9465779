"""What is told of an alarm, where, and how often."""

import asyncio

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from structlog.testing import capture_logs

from cli.stack.probe import standing_alarms
from services.chassis import alarms, metrics
from services.chassis.alarms import Alarm, set_alarm
from services.chassis.lifecycle import App, serve
from services.chassis.settings import ServiceSettings

SETTINGS = ServiceSettings(database_url=SecretStr("x"), nats_url="x", drain_s=0.0, stop_grace_s=1.0)


@pytest.fixture(autouse=True)
def none_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.ALARM.clear()  # others may have raised some in this process
    monkeypatch.setattr(alarms, "_since", {})


def gauge(alarm: Alarm) -> float | None:
    return REGISTRY.get_sample_value("comity_alarm", {"alarm": alarm.label})


@pytest.mark.parametrize("alarm", Alarm)
def test_alarm_is_a_metric_and_one_line_a_change(alarm: Alarm) -> None:
    """Raised or cleared as often as somebody looks, it is logged when it changes: as an error, then as information."""
    with capture_logs() as lines:
        for stands in (False, True, True, False, False):
            set_alarm(alarm, stands)
            assert gauge(alarm) in ((1.0,) if stands else (0.0, None))
    assert [(line["event"], line["log_level"], line["alarm"]) for line in lines] == [
        ("alarm_raised", "error", alarm.label),
        ("alarm_cleared", "info", alarm.label),
    ]
    assert all(sentence.endswith(".") for sentence in (alarm.sentence, alarm.remedy))


async def test_every_process_tells_the_alarms_that_stand_in_it() -> None:
    """What `comity status` shows: name, sentence, remedy and since when; nothing once it is cleared."""
    ports: asyncio.Queue[int] = asyncio.Queue()
    stop = asyncio.Event()

    async def build(_settings: ServiceSettings, app: App) -> None:
        async def tell() -> None:
            await ports.put(app.server.port)

        app.background("tell", tell)

    serving = asyncio.create_task(serve("sample", SETTINGS, build, stop=stop))
    try:
        address = f"127.0.0.1:{await ports.get()}"
        assert await standing_alarms(address) == ()
        set_alarm(Alarm.DEAD_LETTERS, True)
        (told,) = await standing_alarms(address)
        assert (told.name, told.sentence, told.remedy) == (
            "dead_letters",
            Alarm.DEAD_LETTERS.sentence,
            Alarm.DEAD_LETTERS.remedy,
        )
        assert told.since.endswith("Z")
        set_alarm(Alarm.DEAD_LETTERS, False)
        assert await standing_alarms(address) == ()
    finally:
        stop.set()
        assert await serving == 0
