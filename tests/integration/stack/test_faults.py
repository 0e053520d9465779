"""States that a stack can be found in after something went wrong: repaired, or explained."""

import asyncio
import os
import shutil
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import grpc
import psutil
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cli.stack import Stack, discard, look, programs, supervisor
from cli.stack.ports import free_port, is_free
from cli.stack.probe import is_serving
from cli.stack.processes import Command
from cli.stack.state import DataDir
from services.chassis.errors import ServiceError


async def states(data_dir: Path) -> dict[str, str]:
    return {part.name: part.state for part in (await look(data_dir)).parts}


async def test_killed_service_is_seen_and_comes_back_where_it_was(data_dir: Path) -> None:
    """A killed service counts as crashed until it is restarted; its address stays."""
    async with Stack(data_dir, services=("identity", "consent"), disposable=True) as stack:
        address = stack.address("consent")
        await stack.kill("consent")
        assert (await states(data_dir))["consent"] == "crashed"
        await stack.restart("consent")
        assert stack.address("consent") == address
        assert await is_serving(address)
        assert stack.crashed == []


async def test_a_crash_is_told_from_a_kill(data_dir: Path) -> None:
    """What ends unasked is listed as crashed; what the test killed is not."""
    async with Stack(data_dir, services=("identity",), disposable=True) as stack:
        await stack.kill("identity")
        assert stack.crashed == []
        stack._parts.servers["nats"].process.send(signal.SIGTERM)
        assert await stack._parts.servers["nats"].process.wait_gone(10)
        assert stack.crashed == ["nats"]


async def test_paused_service_is_silent_until_it_goes_on(data_dir: Path) -> None:
    """A paused process is alive and does not answer; stopping it works all the same."""
    async with Stack(data_dir, services=("identity",), disposable=True) as stack:
        stack.pause("identity")
        assert (await states(data_dir))["identity"] == "silent"
        stack.resume("identity")
        assert (await states(data_dir))["identity"] == "up"
        stack.pause("identity")
        stack.pause("postgres")
    assert (await look(data_dir)).summary == "down"


@pytest.mark.parametrize("name", ["postgres", "nats", "valkey"])
async def test_killed_server_comes_back_with_its_data(data_dir: Path, name: str) -> None:
    """A killed server restarts on its port; Postgres has what was committed."""
    async with Stack(data_dir, services=(), disposable=True) as stack:
        connection = await asyncpg.connect(stack.postgres_url)
        await connection.execute("CREATE TABLE kept (id int)")
        await connection.execute("INSERT INTO kept VALUES (1)")
        await connection.close()
        port = stack._parts.servers[name].port
        await stack.kill(name)
        assert (await states(data_dir))[name] == "crashed"
        await stack.restart(name)
        assert stack._parts.servers[name].port == port
        connection = await asyncpg.connect(stack.postgres_url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 1
        await connection.close()


async def test_stale_pid_file_of_postgres_is_removed(data_dir: Path) -> None:
    """After a reboot postmaster.pid can name somebody else's process; the server starts all the same."""
    async with Stack(data_dir, services=(), disposable=True):
        pass
    file = data_dir / "postgres" / "data" / "postmaster.pid"
    file.write_text(f"{os.getpid()}\n{file.parent}\n")
    async with Stack(data_dir, services=(), disposable=True):
        assert (await states(data_dir))["postgres"] == "up"


async def test_up_repairs_what_is_missing_only(data_dir: Path) -> None:
    """A second up restarts the killed service and leaves the other one alone."""
    first = Stack(data_dir, services=("identity", "consent"), tied=False, disposable=True)
    await first.start()
    try:
        await first.kill("consent")
        second = Stack(data_dir, services=("identity", "consent"), tied=False, disposable=True)
        await second.start()
        assert second.pid("identity") == first.pid("identity")
        assert second.pid("consent") != first.pid("consent")
        assert await is_serving(second.address("consent"))
    finally:
        await Stack(data_dir).stop()


async def test_taken_ports_are_left_to_their_owners(data_dir: Path) -> None:
    """When another program took the ports meanwhile, the stack moves, and its services are told the new addresses."""
    async with Stack(data_dir, services=("identity",), disposable=True) as stack:
        ports = {"nats": stack._parts.servers["nats"].port, "identity": int(stack.address("identity").split(":")[1])}
    with socket.create_server(("127.0.0.1", ports["nats"])), socket.create_server(("127.0.0.1", ports["identity"])):
        async with Stack(data_dir, services=("identity",), disposable=True) as stack:
            assert f":{ports['nats']}" not in stack.nats_url
            assert stack.address("identity") != f"127.0.0.1:{ports['identity']}"
            assert await is_serving(stack.address("identity"))


async def test_service_of_another_stack_is_never_taken_for_ones_own(data_dir: Path) -> None:
    """Where another stack's service takes the port between the check and the start, it answers: the stack moves."""
    others: list[grpc.Server] = []

    def take_the_port(doing: str) -> None:
        if doing == "service: identity" and not others:
            others.append(serve_health(stack.address("identity")))

    stack = Stack(data_dir, services=("identity",), disposable=True, progress=take_the_port)
    try:
        async with stack:
            port = int(stack.address("identity").rpartition(":")[2])
            listening = psutil.Process(stack.pid("identity")).net_connections("tcp")
            assert port in {one.laddr.port for one in listening if one.status == psutil.CONN_LISTEN}
            assert (await states(data_dir))["identity"] == "up"
    finally:
        assert others, "nothing took the port, so nothing was shown"
        others[0].stop(None)


async def test_service_that_does_not_listen_is_given_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where somebody else's service answers at its address all the while."""
    monkeypatch.setattr(supervisor, "SERVICE_READY_S", 0.5)
    stack = Stack(data_dir, services=("identity",), disposable=True)
    stack.data_dir.create()
    stack._parts.load()
    stack._parts.take_ports(["identity"])
    idle = (sys.executable, "-c", "import signal; signal.pause()")
    other = serve_health(stack.address("identity"))
    stack._parts.spawn(Command("identity", idle, os.environ, stack.log("identity"), data_dir))
    try:
        async with asyncio.timeout(50):
            with pytest.raises(ServiceError, match="identity is not ready"):
                await stack._wait_service("identity")
    finally:
        await stack.stop()
        other.stop(None)


def serve_health(address: str) -> grpc.Server:
    """A program of somebody else that says it is serving."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    server.start()
    return server


async def test_half_initialized_cluster_is_made_anew(data_dir: Path) -> None:
    """A start that was killed during initdb leaves nothing that the next one trips over."""
    left = data_dir / "postgres" / "initializing"
    left.mkdir(parents=True)
    (left / "PG_VERSION").write_text("18\n")
    async with Stack(data_dir, services=(), disposable=True):
        assert not left.exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: shutil.rmtree(folder / "postgres" / "data" / "global"), "not a complete database"),
        (lambda folder: (folder / "postgres" / "data" / "PG_VERSION").write_text("17\n"), "PostgreSQL 17"),
        (lambda folder: (folder / "secrets" / "pepper").unlink(), "pepper is gone"),
        (lambda folder: (folder / "secrets" / "postgres_password").write_text("0" * 64), "another password"),
        (lambda folder: (folder / "state.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "state.json").write_text('{"layout": 99}'), "layout 99"),
    ],
    ids=["cluster", "version", "pepper", "password", "state", "layout"],
)
async def test_damage_is_explained_and_nothing_is_left_running(data_dir: Path, damage: object, says: str) -> None:
    """What cannot be repaired without losing data is refused with a sentence that says what to do."""
    assert callable(damage)
    async with Stack(data_dir, services=(), disposable=True):
        pass
    damage(data_dir)
    with pytest.raises(ServiceError, match=says):
        await Stack(data_dir, services=("identity",)).start()
    if says not in ("is damaged", "layout 99"):
        assert (await look(data_dir)).summary == "down"


async def test_service_that_ends_at_once_is_explained(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a service does not come up, the error shows the end of its log and everything started is stopped."""
    failing = (sys.executable, "-c", "import sys; sys.exit('no pepper')")
    monkeypatch.setattr(programs, "argv", lambda _: failing)
    with pytest.raises(ServiceError, match="no pepper"):
        await Stack(data_dir, services=("identity",), disposable=True).start()
    assert (await look(data_dir)).summary == "down"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
async def test_data_under_a_folder_closed_to_others_works_for_root(data_dir: Path) -> None:
    """Root's Postgres cannot pass through a closed folder: its files go where it can, and are found again."""
    data_dir.mkdir()
    data_dir.chmod(0o700)
    inner = data_dir / "inner"
    try:
        async with Stack(inner, services=(), disposable=True) as stack:
            connection = await asyncpg.connect(stack.postgres_url)
            await connection.execute("CREATE TABLE kept (id int)")
            await connection.close()
        async with Stack(inner, services=(), disposable=True) as stack:
            connection = await asyncpg.connect(stack.postgres_url)
            assert await connection.fetchval("SELECT count(*) FROM kept") == 0
            await connection.close()
    finally:
        state = DataDir(inner).read()
        assert state is not None
        home = DataDir(inner).postgres(state.stack_id)
        discard(inner)
    assert not home.exists()


def test_a_free_port_is_free() -> None:
    """A port that something listens on is not free; one that nothing listens on is."""
    port = free_port()
    assert is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
