"""How a service process begins, lives and ends: settings, logs, background loops, drain in order.

A whole `services/<name>/main.py`:

    class Settings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="COMITY_IDENTITY_")
        pepper_file: Path


    async def build(settings: Settings, app: App) -> None:
        pool = await create_pool(settings.database_url.get_secret_value(), statement_timeout_ms=2000, size=8)
        app.on_stop("postgres", pool.close)
        bus = await NatsBus.connect(settings.nats_url)
        app.on_stop("nats", bus.close)
        store = PostgresEventStore(pool)
        app.on_stop("event log", store.drain)
        app.background("relay", Relay(pool, store, bus, "identity").run)
        app.server.add(add_IdentityServiceServicer_to_server, IdentityService(...))


    if __name__ == "__main__":
        run("identity", Settings, build)

`build` runs before the service is reachable. On the way down: health NOT_SERVING, drain_s, no new calls and
stop_grace_s for those in flight; then the background loops are cancelled; then what was given to `on_stop` is closed in
reverse order. So open pools first, then the bus, then what writes to them. All of it within 30 seconds.

A background loop that crashes is started again with backoff, for ever: what makes it crash may be a stored row, which
the next process meets too, and a process that still answers is worth more than one that begins again. An outage
(ServiceError UNAVAILABLE or DEADLINE, OSError) tells of itself. Anything else is a bug, and one that repeats without a
steady minute between is an alarm: who answers but no longer relays would look healthy while its facts pile up.
"""

import argparse
import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import structlog
from comity.common.v1.operations_pb2_grpc import add_OperationsServiceServicer_to_server
from pydantic import ValidationError

from services.chassis import metrics, telemetry
from services.chassis.alarms import Alarm, set_alarm
from services.chassis.cache import try_cache
from services.chassis.dead_letters import DeadLetters
from services.chassis.errors import Kind, ServiceError
from services.chassis.logs import setup_logs
from services.chassis.nats_connection import try_bus
from services.chassis.old_files import DAY_S
from services.chassis.operations import OperationsService
from services.chassis.postgres import try_database
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings, read_secret, unknown_settings

S = TypeVar("S", bound=ServiceSettings)

STOP_S_MAX = 30.0
CLOSE_S_MAX = 5.0
DELAY_S_MIN, DELAY_S_MAX = 0.1, 5.0
STEADY_S = 60.0
# One alone may have been a race that never comes again.
BUGS_MAX = 3
# Objects made before the youngest are looked through; Python's own 700 is what two requests make.
GC_YOUNG_MAX = 20_000

EXIT_FAILED, EXIT_SETTINGS = 1, 2

_log = structlog.get_logger(__name__)


class App:
    """A service being built and run.

    Args:
        service: its name.
        server: add servicers to it.
        tracing: telemetry of the process.
    """

    def __init__(self, service: str, server: RpcServer, tracing: telemetry.Telemetry) -> None:
        self.service = service
        self.server = server
        self.telemetry = tracing
        self.failed = False
        self._broken: set[str] = set()
        self._operations = OperationsService()
        server.add(add_OperationsServiceServicer_to_server, self._operations)
        self._closers: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [("old traces", self._delete_old_traces)]

    def on_stop(self, name: str, close: Callable[[], Awaitable[object]]) -> None:
        """Close this on the way down; what was registered last is closed first."""
        self._closers.append((name, close))

    def background(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run this loop from when the service is reachable until it drains; when it returns it is not run again."""
        self._loops.append((name, loop))

    def keep(self, letters: DeadLetters) -> None:
        """Have operators list, retry and discard what this service put aside."""
        self._operations.letters = letters
        self.background("dead letters", letters.watch)

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Be reachable and run the loops until *stop*, then drain."""
        port = await self.server.start()
        _log.info("serving", port=port)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep(name, loop), name=name) for name, loop in self._loops]
            await stop.wait()
            _log.info("draining")
            await self.server.stop()
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Close everything in reverse order; what fails or hangs does not keep the rest open."""
        await self.server.stop()
        while self._closers:
            name, close = self._closers.pop()
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await close()
            except Exception as error:
                _log.error("not closed", name=name, exc_info=error)
        if not await _in_thread(self.telemetry.shutdown, CLOSE_S_MAX):
            _log.warning("not closed", name="telemetry")

    async def _delete_old_traces(self) -> None:
        while True:
            self.telemetry.delete_old()
            await asyncio.sleep(DAY_S)

    async def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        restarts = Restarts()
        while True:
            started_s = time.monotonic()
            steady = asyncio.get_running_loop().call_later(STEADY_S, self._tell_broken, name, False)
            try:
                await loop()
                return
            except Exception as error:
                delay_s = restarts.delay_s_after(error, time.monotonic() - started_s)
                _log.error("loop crashed", loop=name, retry_in_s=delay_s, crashes=restarts.crashes, exc_info=error)
            finally:
                steady.cancel()
            metrics.LOOP_RESTARTS.labels(name).inc()
            self._tell_broken(name, restarts.is_broken)
            await asyncio.sleep(delay_s * random.uniform(0.8, 1.2))

    def _tell_broken(self, name: str, is_broken: bool) -> None:
        """Raise the alarm while any loop is broken."""
        (self._broken.add if is_broken else self._broken.discard)(name)
        set_alarm(Alarm.LOOP_CRASHES, bool(self._broken))


class Restarts:
    """Says when a loop that crashed is started again."""

    def __init__(self) -> None:
        self.crashes = 0
        self._bugs = 0

    @property
    def is_broken(self) -> bool:
        """Whether it crashes for a reason that no time mends."""
        return self._bugs >= BUGS_MAX

    def delay_s_after(self, error: Exception, ran_s: float) -> float:
        """How long to wait before the next start. *ran_s*: how long it ran this time."""
        if ran_s >= STEADY_S:
            self.crashes = self._bugs = 0
        self.crashes += 1
        self._bugs += not _is_outage(error)
        return float(min(DELAY_S_MAX, DELAY_S_MIN * 2 ** min(self.crashes - 1, 10)))


def run(service: str, settings_class: type[S], build: Callable[[S, App], Awaitable[None]]) -> NoReturn:
    """Run the service until SIGTERM or SIGINT, then exit the process; `--check` only validates the settings.

    A variable with the service's prefix that is no setting is refused by `--check`, and told while the service runs.
    """
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}.main", description=f"The {service} service.")
    parser.add_argument("--check", action="store_true", help="validate the settings and exit")
    parser.add_argument(
        "--connect", action="store_true", help="with --check: also try Postgres, NATS and Redis as the service will"
    )
    asked = parser.parse_args()
    if asked.connect and not asked.check:
        parser.error("--connect goes with --check")
    try:
        settings = load(settings_class)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_SETTINGS)
    unknown = unknown_settings(settings_class, os.environ)
    if asked.check:
        problems = [f"{name}: no such setting{_meant(like)}" for name, like in unknown.items()]
        refusals = asyncio.run(try_servers(service, settings)) if asked.connect else []
        sys.stderr.write("\n".join([*problems, *refusals] or ["the settings are valid"]) + "\n")
        sys.exit(EXIT_SETTINGS if problems else EXIT_FAILED if refusals else 0)
    setup_logs(service, settings.log_level)
    _log.info("starting", settings=settings.public())
    # Not refused: settings reach the replicas of two releases, and one of them may be new to the older.
    for name, like in unknown.items():
        _log.error("unknown setting", name=name, remedy=f"correct or unset it{_meant(like)}")
    set_alarm(Alarm.UNKNOWN_SETTING, bool(unknown))
    sys.exit(asyncio.run(_serve_within_bounds(service, settings, build)))


def load(settings_class: type[S]) -> S:
    """The settings from the environment, with every secret file there.

    Raises:
        ValueError: a line for each variable that is wrong: its name, what is wrong, never its value.
    """
    prefix = str(settings_class.model_config.get("env_prefix", ""))
    try:
        settings = settings_class()  # type: ignore[call-arg]  # the environment gives them
    except ValidationError as error:
        lines = (f"{prefix}{'.'.join(map(str, one['loc']))}".upper() + f": {one['msg']}" for one in error.errors())
        raise ValueError("\n".join(lines)) from None
    wrong = []
    for name, path in settings.secret_files().items():
        try:
            read_secret(path)
        except ValueError as error:
            wrong.append(f"{prefix}{name}".upper() + f": {error}")
    wrong += [f"{prefix}{name}".upper() + f": {problem}" for name, problem in settings.nats_files.problems().items()]
    if wrong:
        raise ValueError("\n".join(wrong))
    return settings


def _meant(like: str) -> str:
    return f"; did you mean {like}?" if like else ""


async def try_servers(service: str, settings: ServiceSettings) -> list[str]:
    """What keeps the service from working with Postgres, NATS and Redis: a sentence for each that does."""
    redis_url = getattr(settings, "redis_url", "")
    tries = [
        try_database(settings.database_url.get_secret_value()),
        try_bus(settings.nats_url, settings.nats_files),
        *([try_cache(redis_url, prefix=f"{service}:")] if redis_url else []),
    ]
    found = await asyncio.gather(*tries, return_exceptions=True)
    for error in found:
        if isinstance(error, BaseException) and not isinstance(error, ServiceError):
            raise error
    return [error.message for error in found if isinstance(error, ServiceError)]


def _spare_the_collector() -> None:
    """Keep the garbage collector away from what lives as long as the process, and let it run less often.

    A request makes hundreds of objects, nearly all of which die with their last reference.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_MAX, 20, 50)


async def serve(
    service: str, settings: S, build: Callable[[S, App], Awaitable[None]], *, stop: asyncio.Event | None = None
) -> int:
    """Build the service and serve until a signal comes or *stop* is set; the process's exit status."""
    stop = stop if stop is not None else asyncio.Event()
    tracing = telemetry.setup(service, settings)
    app = App(service, RpcServer(settings, tracing), tracing)
    with _signals(stop):
        try:
            metrics.serve(settings.metrics_port, settings.metrics_host)
            if await _unless_stopped(build(settings, app), stop):
                _spare_the_collector()
                await app.serve_until(stop)
        except Exception as error:
            _log.error("the service failed", exc_info=error)
            app.failed = True
        finally:
            await app.close()
    _log.info("stopped")
    return EXIT_FAILED if app.failed else 0


async def _serve_within_bounds(service: str, settings: S, build: Callable[[S, App], Awaitable[None]]) -> int:
    """Serve, and end the process where it has not ended by itself in the time that a stop may take."""
    stop = asyncio.Event()

    async def watch() -> None:
        await stop.wait()
        # A thread, because what hangs may be the loop itself.
        watchdog = threading.Timer(STOP_S_MAX, _give_up)
        watchdog.daemon = True
        watchdog.start()

    watching = asyncio.ensure_future(watch())
    try:
        return await serve(service, settings, build, stop=stop)
    finally:
        watching.cancel()


def _give_up() -> None:
    _log.error("not stopped in time", timeout_s=STOP_S_MAX)
    os._exit(EXIT_FAILED)


async def _unless_stopped(build: Awaitable[None], stop: asyncio.Event) -> bool:
    """Await *build*, or cancel it when a signal comes first; whether it was completed."""
    building = asyncio.ensure_future(build)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((building, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not building.done():
        building.cancel()
        await asyncio.wait((building,))
        return False
    await building
    return not stop.is_set()


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set *stop*; a second one changes nothing, since the drain is bounded."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _in_thread(work: Callable[[], None], timeout_s: float) -> bool:
    """Run blocking work aside; False when it takes too long. A daemon, so that it cannot hold the process's end."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work_and_tell() -> None:
        try:
            work()
        finally:
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work_and_tell, daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        return False
    return True


def _is_outage(error: Exception) -> bool:
    """Whether something outside was away, rather than something here wrong."""
    if isinstance(error, ServiceError):
        return error.kind in (Kind.UNAVAILABLE, Kind.DEADLINE)
    return isinstance(error, OSError)
