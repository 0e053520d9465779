"""How a service process begins and ends."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from comity.consent.v1 import consent_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.chassis import alarms, lifecycle
from services.chassis.alarms import Alarm, set_alarm
from services.chassis.errors import Kind, ServiceError
from services.chassis.lifecycle import App, serve
from services.chassis.rpc_client import CHANNEL_OPTIONS
from services.chassis.settings import ServiceSettings

SETTINGS = ServiceSettings(database_url=SecretStr("x"), nats_url="x", drain_s=0.0, stop_grace_s=1.0)


def closer(name: str, closed: list[str], *, error: Exception | None = None) -> Callable[[], Awaitable[object]]:
    async def close() -> None:
        closed.append(name)
        if error is not None:
            raise error

    return close


async def test_the_way_down_is_in_order() -> None:
    """Calls, loops, then what was opened, the newest first; one that fails keeps none of the others open."""
    events: list[str] = []
    stop = asyncio.Event()

    async def loop() -> None:
        events.append("loop runs")
        stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            events.append("loop ends")

    async def build(_settings: ServiceSettings, app: App) -> None:
        app.on_stop("pool", closer("pool", events))
        app.on_stop("bus", closer("bus", events, error=OSError("gone")))
        app.on_stop("log", closer("log", events))
        app.background("relay", loop)
        stop_server = app.server.stop

        async def stop_and_tell() -> None:
            await stop_server()
            events.append("server stopped")

        app.server.stop = stop_and_tell  # type: ignore[method-assign]

    assert await serve("sample", SETTINGS, build, stop=stop) == 0
    assert events == ["loop runs", "server stopped", "loop ends", "server stopped", "log", "bus", "pool"]


async def test_a_crashed_loop_is_started_again() -> None:
    """The service answers on meanwhile."""
    runs, stop = [0], asyncio.Event()

    async def loop() -> None:
        runs[0] += 1
        if runs[0] == 3:
            stop.set()
            return
        raise ServiceError(Kind.UNAVAILABLE, "AWAY", "away")

    async def build(_settings: ServiceSettings, app: App) -> None:
        app.background("relay", loop)

    assert await serve("sample", SETTINGS, build, stop=stop) == 0
    assert runs == [3]


async def test_a_loop_that_is_broken_is_an_alarm_and_the_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it crash may be a row that the next process meets too: it answers on, and says so."""
    monkeypatch.setattr(lifecycle, "DELAY_S_MAX", 0.01)
    stop, crashes = asyncio.Event(), itertools.count(1)

    async def loop() -> None:
        if next(crashes) > 30:
            assert Alarm.LOOP_CRASHES in alarms.standing()
            stop.set()
            return
        raise KeyError

    async def build(_settings: ServiceSettings, app: App) -> None:
        app.background("relay", loop)

    try:
        async with asyncio.timeout(50):
            assert await serve("sample", SETTINGS, build, stop=stop) == 0
    finally:
        set_alarm(Alarm.LOOP_CRASHES, False)


async def test_a_build_that_fails_closes_what_it_opened() -> None:
    """Nothing is left open, and the exit status says so."""
    closed: list[str] = []

    async def build(_settings: ServiceSettings, app: App) -> None:
        app.on_stop("pool", closer("pool", closed))
        raise OSError("no database")

    assert await serve("sample", SETTINGS, build) == lifecycle.EXIT_FAILED
    assert closed == ["pool"]


async def test_a_signal_while_building_stops_at_once() -> None:
    """A service that waits for its database can be ended."""
    closed, stop = list[str](), asyncio.Event()

    async def build(_settings: ServiceSettings, app: App) -> None:
        app.on_stop("pool", closer("pool", closed))
        stop.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(50):
        assert await serve("sample", SETTINGS, build, stop=stop) == 0
    assert closed == ["pool"]


async def test_a_service_is_not_reachable_before_it_is_built() -> None:
    """The port opens when the first call can be answered."""
    seen, stop = list[int](), asyncio.Event()

    async def look(app: App) -> None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{app.server.port}", options=CHANNEL_OPTIONS)
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        seen.append(answer.status)
        await channel.close()
        stop.set()

    async def build(_settings: ServiceSettings, app: App) -> None:
        assert app.server.port == 0
        app.server.add(
            pb_grpc.add_ConsentServiceServicer_to_server,
            pb_grpc.ConsentServiceServicer(),  # type: ignore[abstract]
        )
        app.background("look", lambda: look(app))

    assert await serve("sample", SETTINGS, build, stop=stop) == 0
    assert seen == [health_pb2.HealthCheckResponse.SERVING]


MAIN = """
import asyncio, os, time
from services.chassis import lifecycle
from services.chassis.lifecycle import App, run
from services.chassis.settings import ServiceSettings

async def build(settings: ServiceSettings, app: App) -> None:
    app.on_stop("pool", lambda: asyncio.to_thread(print, "pool closed", flush=True))

    async def ready() -> None:
        print("ready", flush=True)
        await asyncio.Event().wait()

    app.background("ready", ready)
    if "HANG" in os.environ:
        lifecycle.STOP_S_MAX = 0.5
        app.on_stop("loop", hang)

async def hang() -> None:
    time.sleep(60)

run("sample", ServiceSettings, build)
"""


async def start(tmp_path: Path, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
    main = tmp_path / "main.py"
    main.write_text(MAIN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        main,
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


COMPLETE = {"COMITY_DATABASE_URL": "postgres://u:hunter2@h/d", "COMITY_NATS_URL": "nats://h", "COMITY_DRAIN_S": "0"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_drains_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """It closes what it opened and exits with 0; its log is JSON lines without secrets."""
    async with asyncio.timeout(50):
        process = await start(tmp_path, **COMPLETE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        out, logged = await process.communicate()
    assert process.returncode == 0
    assert out == b"pool closed\n"
    assert [line for line in logged.splitlines() if not line.startswith(b"{")] == []
    assert b'"event":"serving"' in logged.replace(b": ", b":")
    assert b"hunter2" not in logged


async def test_a_process_that_hangs_ends_all_the_same(tmp_path: Path) -> None:
    """Whatever blocks the loop on the way down, the time for it is bounded."""
    async with asyncio.timeout(50):
        process = await start(tmp_path, **COMPLETE, HANG="1")
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        _, logged = await process.communicate()
    assert process.returncode == lifecycle.EXIT_FAILED
    assert b"not stopped in time" in logged


async def test_check_validates_the_settings_and_exits(tmp_path: Path) -> None:
    """Nothing is started; what is wrong is named by its variable."""
    async with asyncio.timeout(50):
        process = await start(tmp_path, "--check", **COMPLETE)
        _, said = await process.communicate()
        assert (process.returncode, said) == (0, b"the settings are valid\n")
        process = await start(tmp_path, "--check", **{**COMPLETE, "COMITY_TRACE_RATIO": "7"})
        _, said = await process.communicate()
    assert process.returncode == lifecycle.EXIT_SETTINGS
    assert said.startswith(b"COMITY_TRACE_RATIO: ")


async def test_connect_goes_with_check_alone(tmp_path: Path) -> None:
    """Whoever only wanted to try the servers does not start a service."""
    async with asyncio.timeout(50):
        process = await start(tmp_path, "--connect", **COMPLETE)
        _, said = await process.communicate()
    assert process.returncode == lifecycle.EXIT_SETTINGS
    assert b"--connect goes with --check" in said


async def test_misspelled_setting_is_refused_by_check_and_told_by_the_process(tmp_path: Path) -> None:
    """`--check` fails and says what is meant; a process serves all the same, with an alarm and the name in its log."""
    misspelled = {**COMPLETE, "COMITY_TRACE_RATE": "0.1"}
    async with asyncio.timeout(50):
        process = await start(tmp_path, "--check", **misspelled)
        _, said = await process.communicate()
        assert process.returncode == lifecycle.EXIT_SETTINGS
        assert said == b"COMITY_TRACE_RATE: no such setting; did you mean COMITY_TRACE_RATIO?\n"
        process = await start(tmp_path, **misspelled)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        _, logged = await process.communicate()
    assert process.returncode == 0
    lines = [json.loads(line) for line in logged.splitlines()]
    (unknown,) = [line for line in lines if line["event"] == "unknown setting"]
    assert unknown["name"] == "COMITY_TRACE_RATE"
    assert "did you mean COMITY_TRACE_RATIO?" in unknown["remedy"]
    assert [line["alarm"] for line in lines if line["event"] == "alarm_raised"] == ["unknown_setting"]
