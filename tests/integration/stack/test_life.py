"""A stack from its first start to its end."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from cli.stack import SERVICES, Stack, addresses, discard, look
from cli.stack.probe import is_serving
from cli.stack.processes import wait_until
from cli.stack.provision import of_database, provision, url_for
from cli.stack.rights import migrate_owned
from cli.stack.users import service_uid
from services.chassis.errors import ServiceError
from services.chassis.migrations import CHASSIS, migrate

ALONE = """
import asyncio, sys
from pathlib import Path
from cli.stack import Stack, programs
programs.argv = lambda service: (sys.executable, sys.argv[2], service)

async def main():
    async with Stack(Path(sys.argv[1]), services=("identity",), disposable=True):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_whole_stack_answers_and_leaves_nothing_behind(data_dir: Path) -> None:
    """All servers and services answer at the addresses given, none as root; after the end no process of them runs."""
    async with Stack(data_dir, disposable=True) as stack:
        assert set(stack.addresses) == set(SERVICES)
        assert all([await is_serving(stack.address(service)) for service in SERVICES])
        assert (await look(data_dir)).summary == "up"
        assert addresses(data_dir) == stack.addresses
        processes = [psutil.Process(stack.pid(name)) for name in ("postgres", "nats", "valkey", *SERVICES)]
        assert service_uid() is None or not any(0 in process.uids() for process in processes)
    assert not any(process.is_running() for process in processes)
    assert (await look(data_dir)).summary == "down"
    with pytest.raises(ServiceError, match="comity up"):
        addresses(data_dir)


async def test_data_secrets_and_ports_outlast_a_stop(data_dir: Path) -> None:
    """What a service stored, the keys it was stored with and where it answers are the same after down and up."""
    async with Stack(data_dir, services=("identity",)) as stack:
        connection = await asyncpg.connect(stack.database_url("identity"))
        await connection.execute("CREATE TABLE kept (id int)")
        await connection.close()
        address = stack.address("identity")
        pepper = (data_dir / "secrets" / "pepper").read_text()
    async with Stack(data_dir, services=("identity",)) as stack:
        connection = await asyncpg.connect(stack.database_url("identity"))
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()
        assert stack.address("identity") == address
        assert (data_dir / "secrets" / "pepper").read_text() == pepper


async def test_secrets_are_for_their_owner_only(data_dir: Path) -> None:
    """No other user can read a key, a password or the addresses that carry passwords."""
    async with Stack(data_dir, services=(), disposable=True):
        modes = {file.name: file.stat().st_mode & 0o077 for file in (data_dir / "secrets").iterdir()}
        modes |= {file.name: file.stat().st_mode & 0o077 for file in data_dir.glob("*/*.conf")}
        modes["state.json"] = (data_dir / "state.json").stat().st_mode & 0o077
    assert len(modes) >= 10
    assert set(modes.values()) == {0}


async def test_a_service_reaches_its_own_database_only(data_dir: Path) -> None:
    """A service's role cannot connect to another service's database, nor create anything of its own."""
    async with Stack(data_dir, services=("identity", "consent"), disposable=True) as stack:
        foreign = stack.database_url("identity").removesuffix("identity") + "consent"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(foreign)
        connection = await asyncpg.connect(stack.database_url("identity"))
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("CREATE DATABASE mine")
            assert await connection.fetchval("SHOW data_checksums") == "on"
            assert await connection.fetchval("SHOW synchronous_commit") == "on"
            await _cannot_weaken_its_log(connection)
        finally:
            await connection.close()
        await _takes_over_an_earlier_release(stack)
        await _serves_an_administrator_that_is_no_superuser(stack)


async def _cannot_weaken_its_log(connection: Any) -> None:
    """What keeps the log append-only is not the service's to take away."""
    await connection.execute("UPDATE log_epoch SET epoch = epoch")
    # Without it the VACUUM after a destroyed key would be a warning and nothing else.
    assert await connection.fetchval("SELECT has_table_privilege('data_keys', 'MAINTAIN')")
    await connection.execute("CREATE TABLE IF NOT EXISTS schema_migrations ()")  # as every service does at its start
    for statement in (
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "DROP TRIGGER events_append_only ON events",
        "CREATE TRIGGER mine BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        "CREATE RULE mine AS ON INSERT TO events DO INSTEAD NOTHING",
        "CREATE OR REPLACE FUNCTION public.refuse_change() RETURNS trigger LANGUAGE plpgsql AS ''",
        "ALTER TABLE events RENAME TO forgotten",
        "ALTER TABLE events OWNER TO comity_identity",
        "ALTER TABLE erased_members DROP CONSTRAINT erased_members_named",
        "UPDATE events SET type = ''",
        "DELETE FROM events",
        "TRUNCATE events",
        "DROP TABLE events",
        "DROP SCHEMA public CASCADE",
        "CREATE FUNCTION public.pg_advisory_lock(integer) RETURNS void LANGUAGE sql AS ''",
        "CREATE OR REPLACE VIEW comity_identity.schema_migrations AS SELECT",
        "CREATE SCHEMA comity_identity_owner",
        "SET ROLE comity_identity_owner",
        "SET session_replication_role = replica",
        "UPDATE schema_migrations SET checksum = ''",
        "DROP DATABASE comity_identity",
    ):
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            continue
        raise AssertionError(f"{statement}: went through")


async def _takes_over_an_earlier_release(stack: Stack) -> None:
    """Tables that belong to the service's role, as an earlier release left them, are handed over at the next start."""
    url = stack.database_url("identity")
    admin = await asyncpg.connect(of_database(stack.postgres_url, "comity_identity"))
    try:
        await admin.execute("REASSIGN OWNED BY comity_identity_owner TO comity_identity")
        assert await _owners(admin) == {"comity_identity"}
        await admin.execute("CREATE ROLE other LOGIN CREATEROLE CREATEDB PASSWORD 'other'")
        other = url_for(stack.postgres_url, "other", "other", "postgres")
        refusal = await migrate_owned(other, url, "identity")
        assert "may own their tables" in refusal
        assert "superuser" in refusal
        assert await _owners(admin) == {"comity_identity"}
        assert await migrate_owned(stack.postgres_url, url, "identity") == ""
        assert await _owners(admin) == {"comity_identity_owner"}
        assert not await admin.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'comity_identity_owner'")
    finally:
        await admin.close()


async def _serves_an_administrator_that_is_no_superuser(stack: Stack) -> None:
    """Who may create roles and databases, as of a managed Postgres, can part those that it made."""
    given = url_for(stack.postgres_url, "other", "other", "postgres")
    urls = await provision(given, {"feedback": "secret"})
    for _ in range(2):
        assert await migrate_owned(given, urls["feedback"], "feedback") == ""
    connection = await asyncpg.connect(urls["feedback"])
    try:
        assert await _owners(connection) == {"comity_feedback_owner"}
        assert await connection.fetchval("SELECT count(*) FROM events") == 0
        await migrate(urls["feedback"], CHASSIS)
    finally:
        await connection.close()


async def _owners(connection: Any) -> set[str]:
    rows = await connection.fetch("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    return {row["tableowner"] for row in rows}


async def test_untied_stack_outlives_its_starter_and_is_stopped_by_another(data_dir: Path) -> None:
    """`comity up` and `comity down` are two processes: the second finds by pid what the first started."""
    up = Stack(data_dir, services=("identity",), tied=False, disposable=True)
    await up.start()
    pid = up.pid("identity")
    again = Stack(data_dir, services=("identity",), tied=False, disposable=True)
    await again.start()
    assert again.pid("identity") == pid, "a second up leaves alone what runs"
    await Stack(data_dir, tied=False).stop()
    assert json.loads((data_dir / "state.json").read_text())["processes"] == {}
    assert (await look(data_dir)).summary == "down"
    discard(data_dir)
    assert not data_dir.exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_nothing_outlives_a_tied_supervisor(data_dir: Path, end: signal.Signals) -> None:
    """However the process that holds a stack ends, its servers and services end too, and the next start works."""
    stand_in = Path(__file__).with_name("stand_in.py")
    command = [sys.executable, "-c", ALONE, str(data_dir), str(stand_in)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as supervisor:
        try:
            assert supervisor.stdout is not None
            assert await asyncio.to_thread(supervisor.stdout.readline) == b"up\n"
            records = json.loads((data_dir / "state.json").read_text())["processes"]
            processes = [psutil.Process(record["pid"]) for record in records.values()]
            assert len(processes) == 4
        finally:
            supervisor.send_signal(end)
            supervisor.wait(30)
    assert await wait_until(lambda: not any(_runs(process) for process in processes), 20)
    async with Stack(data_dir, services=("identity",), disposable=True) as stack:
        assert await is_serving(stack.address("identity"))


async def test_a_second_supervisor_is_refused(data_dir: Path) -> None:
    """Two processes cannot change one data directory at the same time; the second is told who holds it."""
    async with Stack(data_dir, services=(), disposable=True):
        with pytest.raises(ServiceError, match="in use by process"):
            await Stack(data_dir, services=()).start()
        with pytest.raises(ServiceError, match="in use by process"):
            await Stack(data_dir).stop()


async def test_external_servers_are_used_and_left_alone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers named by address are used by the services, never started, and still run after the stack has stopped."""
    async with Stack(data_dir / "theirs", services=(), disposable=True) as theirs:
        monkeypatch.setenv("COMITY_POSTGRES_URL", theirs.postgres_url)
        monkeypatch.setenv("COMITY_NATS_URL", theirs.nats_url)
        monkeypatch.setenv("COMITY_REDIS_URL", theirs.redis_url)
        async with Stack(data_dir / "ours", services=("identity",)) as ours:
            assert ours.nats_url == theirs.nats_url
            states = {part.name: part.state for part in (await look(data_dir / "ours")).parts}
            assert [states[name] for name in ("postgres", "nats", "valkey")] == ["external"] * 3
            connection = await asyncpg.connect(ours.database_url("identity"))
            assert await connection.fetchval("SELECT current_user") == "comity_identity"
            await connection.close()
        assert not (data_dir / "ours" / "postgres").exists()
        assert theirs.crashed == []
        monkeypatch.setenv("COMITY_POSTGRES_URL", ours.database_url("identity"))
        with pytest.raises(ServiceError, match="COMITY_POSTGRES_URL may not create roles and databases"):
            await Stack(data_dir / "ours").start()
        monkeypatch.setenv("COMITY_NATS_URL", "nats://127.0.0.1:1")
        with pytest.raises(ServiceError, match="COMITY_NATS_URL"):
            await Stack(data_dir / "ours", move_servers=True).start()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
