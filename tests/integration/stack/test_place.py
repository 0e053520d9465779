"""A stack stays where its data is: on the servers that it began on, in the folder that it began in."""

import json
import os
import shutil
from pathlib import Path

import asyncpg
import pytest

from cli.stack import DataDir, Stack, addresses, discard, look
from cli.stack.external import VARIABLES, require_same
from cli.stack.state import State
from services.chassis.errors import ServiceError

EXTERNAL = {
    "postgres": "postgresql://admin:hidden-word@db.example:5432/postgres",
    "nats": "nats://u:hidden-word@bus.example:4222",
    "valkey": "redis://:hidden-word@cache.example:6379/0",
}
EMBEDDED = {
    "postgres": "postgresql://postgres:hidden-word@127.0.0.1:15432/postgres",
    "nats": "nats://comity:hidden-word@127.0.0.1:15422",
    "valkey": "redis://:hidden-word@127.0.0.1:15679/0",
}


@pytest.mark.parametrize("name", VARIABLES)
def test_server_that_would_be_another_is_refused_with_both_addresses(name: str) -> None:
    """From external to embedded, from embedded to external, from one external to another; and no password is told."""
    other = EXTERNAL[name].replace("example", "elsewhere")
    cases: tuple[tuple[str, list[str], dict[str, str], str, str], ...] = (
        (EXTERNAL[name], [name], {}, f"set {VARIABLES[name]}", "an embedded one"),
        (EMBEDDED[name], [], {name: other}, f"unset {VARIABLES[name]}", "elsewhere"),
        (EXTERNAL[name], [name], {name: other}, f"set {VARIABLES[name]}", "elsewhere"),
    )
    for before, was_external, external, remedy, now in cases:
        with pytest.raises(ServiceError) as refused:
            require_same({name: before}, was_external, external)
        told = refused.value.message
        assert before.rpartition("@")[2].split("/")[0] in told
        assert all(word in told for word in (remedy, now, "--move-servers"))
        assert "hidden-word" not in told


def test_servers_that_are_the_same_are_no_move() -> None:
    """Another password, or the usual port left out, is the same server; so is an embedded one on another port."""
    rotated = {name: url.replace("hidden-word", "another").replace(":5432", "") for name, url in EXTERNAL.items()}
    require_same(EXTERNAL, list(EXTERNAL), rotated)
    require_same(EMBEDDED, [], {})
    require_same({}, [], EXTERNAL)


async def test_stack_whose_servers_are_no_longer_named_is_not_started(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell without last time's address starts nothing and changes nothing; told to move, the stack moves."""
    async with Stack(data_dir / "theirs", services=(), disposable=True) as theirs:
        ours = data_dir / "ours"
        monkeypatch.setenv("COMITY_POSTGRES_URL", theirs.postgres_url)
        async with Stack(ours, services=("identity",), disposable=True):
            pass
        monkeypatch.delenv("COMITY_POSTGRES_URL")
        before = (ours / "state.json").read_bytes()
        with pytest.raises(ServiceError, match="COMITY_POSTGRES_URL"):
            await Stack(ours, services=("identity",), disposable=True).start()
        assert (ours / "state.json").read_bytes() == before
        assert not (ours / "postgres").exists()
        async with Stack(ours, services=(), disposable=True, move_servers=True) as moved:
            assert moved.postgres_url != theirs.postgres_url


async def test_second_stack_on_one_postgres_is_refused_and_changes_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roles that are there are the first stack's: the second one learns that, and the first one goes on."""
    async with Stack(data_dir / "servers", services=(), disposable=True) as servers:
        monkeypatch.setenv("COMITY_POSTGRES_URL", servers.postgres_url)
        async with Stack(data_dir / "first", services=("identity",), disposable=True) as first:
            with pytest.raises(ServiceError, match=r"comity_identity at .* are another stack's") as refused:
                await Stack(data_dir / "second", services=("consent", "identity"), disposable=True).start()
            assert refused.value.reason == "DATABASES_OF_ANOTHER_STACK"
            connection = await asyncpg.connect(first.database_url("identity"))
            await connection.close()
        connection = await asyncpg.connect(servers.postgres_url)
        names = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
        await connection.close()
        assert "comity_identity" in names
        assert "comity_consent" not in names
        async with Stack(data_dir / "first", services=("identity",), disposable=True) as first:
            assert (await look(data_dir / "first")).parts[0].state == "external"


async def test_copied_folder_never_commands_the_original(data_dir: Path) -> None:
    """Whatever is asked of a copy is refused, with the place of the original, and the original goes on."""
    original, copy = data_dir / "original", data_dir / "copy"
    stack = Stack(original, services=("identity",), tied=False, disposable=True)
    await stack.start()
    try:
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("postgres"))
        with pytest.raises(ServiceError, match=str(original)):
            await Stack(copy, tied=False).stop()
        with pytest.raises(ServiceError, match=str(original)):
            await Stack(copy, tied=False).start()
        with pytest.raises(ServiceError, match=str(original)):
            await look(copy)
        with pytest.raises(ServiceError, match=str(original)):
            addresses(copy)
        with pytest.raises(ServiceError, match=str(original)):
            discard(copy)
        assert {part.state for part in (await look(original)).parts if part.pid} == {"up"}
    finally:
        await Stack(original, tied=False).stop()


async def test_adopted_copy_is_a_stack_of_its_own(data_dir: Path) -> None:
    """A copy that was adopted starts with the data it has, under its own id and ports, beside the original."""
    original, copy = data_dir / "original", data_dir / "copy"
    async with Stack(original, services=("identity",), disposable=True):
        pass
    shutil.copytree(original, copy)
    if os.geteuid() == 0:
        for folder, _, files in os.walk(original / "postgres"):
            for path in (Path(folder), *(Path(folder, file) for file in files)):
                owner = path.stat()
                os.chown(copy / path.relative_to(original), owner.st_uid, owner.st_gid)
    stack_id = DataDir(copy).adopt().stack_id
    assert stack_id != json.loads((original / "state.json").read_text())["stack_id"]
    async with (
        Stack(original, services=("identity",), disposable=True) as first,
        Stack(copy, services=("identity",), disposable=True) as second,
    ):
        assert first.address("identity") != second.address("identity")
        assert {part.state for part in (await look(copy)).parts if part.pid} == {"up"}


async def test_moved_folder_is_the_same_stack(data_dir: Path) -> None:
    """A folder that was renamed opens where it is now; what still ran from its old place is ended first."""
    before, after = data_dir / "before", data_dir / "after"
    first = Stack(before, services=("identity",), tied=False, disposable=True)
    await first.start()
    pid = first.pid("identity")
    before.rename(after)
    try:
        moved = Stack(after, services=("identity",), tied=False, disposable=True)
        await moved.start()
        assert moved.pid("identity") != pid
        assert not before.exists()
        assert {part.state for part in (await look(after)).parts if part.pid} == {"up"}
    finally:
        await Stack(after, tied=False).stop()


async def test_lost_files_of_postgres_are_told_instead_of_made_anew(data_dir: Path) -> None:
    """Where everything recorded is gone, an empty database in its place would look as if nobody ever refused."""
    async with Stack(data_dir, services=("identity",), disposable=True):
        pass
    shutil.rmtree(DataDir(data_dir).postgres("") / "data")
    with pytest.raises(ServiceError, match="is gone"):
        await Stack(data_dir, services=("identity",), disposable=True).start()


async def test_state_of_the_layout_before_opens(data_dir: Path) -> None:
    """A folder that an older release wrote, which did not say where it was, opens and says so from then on."""
    async with Stack(data_dir, services=(), disposable=True):
        pass
    file = data_dir / "state.json"
    state = json.loads(file.read_text())
    for name in set(state) - {"stack_id", "ports", "processes", "urls", "databases", "external", "versions", "secrets"}:
        del state[name]
    file.write_text(json.dumps({**state, "layout": 1}))
    async with Stack(data_dir, services=(), disposable=True):
        assert (await look(data_dir)).parts[0].state == "up"
    assert json.loads(file.read_text())["path"] == str(data_dir.resolve())


def test_adopting_needs_a_stack(tmp_path: Path) -> None:
    """A folder that never was a stack's is named."""
    with pytest.raises(ServiceError, match="was a stack's"):
        DataDir(tmp_path).adopt()
    DataDir(tmp_path).write(State(stack_id="old", ports={"nats": 1}))
    assert DataDir(tmp_path).adopt().ports == {}
