"""`comity check --connect`, `status` and `up` on servers that somebody else runs: what is wrong is named."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.stack.connecting import try_connections
from cli.stack.external import require_reachable, server_problems, shown
from cli.stack.servers import Servers
from cli.stack.state import DataDir, State
from cli.stack.status import Part, look
from services.chassis.errors import ServiceError

VARIABLES = {"postgres": "COMITY_POSTGRES_URL", "nats": "COMITY_NATS_URL", "valkey": "COMITY_REDIS_URL"}


def urls(servers: Servers) -> dict[str, str]:
    return {name: server.url for name, server in servers.by_name.items()}


def wrong(servers: Servers) -> dict[str, str]:
    return {name: server.url.replace(server.password, "wrong") for name, server in servers.by_name.items()}


def check(given: dict[str, str], data_dir: Path) -> tuple[int, dict[str, object]]:
    """`comity check --connect --json` with the servers in its environment."""
    environment = {VARIABLES[name]: url for name, url in given.items()}
    done = CliRunner().invoke(app, ["check", "--connect", "--json", "--data-dir", str(data_dir)], env=environment)
    return done.exit_code, json.loads(done.stdout)


def test_check_connect_tries_what_the_services_will_do(servers: Servers, data_dir: Path) -> None:
    """Each server is told apart, with the variable that is wrong and never its value; a bundle is not needed."""
    code, told = check(urls(servers), data_dir)
    assert (code, told["ok"]) == (0, True)
    assert len(told["connections"]) == 3  # type: ignore[arg-type]
    code, told = check(wrong(servers), data_dir)
    assert (code, told["ok"]) == (1, False)
    text = json.dumps(told["connections"])
    assert "password in COMITY_POSTGRES_URL" in text
    assert "password in NATS_URL" in text
    assert "password in REDIS_URL" in text
    assert not any(server.password in text or "wrong@" in text for server in servers.by_name.values())


async def test_status_tells_a_server_that_refuses(
    servers: Servers, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password is not up: the part says refused, which setting, and status fails."""
    folder = DataDir(data_dir)
    folder.create()
    parts: dict[bool, dict[str, Part]] = {}
    for right, told in ((True, urls(servers)), (False, wrong(servers))):
        folder.write(State(stack_id="told", external=sorted(told), urls=dict(told)))
        monkeypatch.setenv(VARIABLES["nats"], told["nats"])
        parts[right] = {part.name: part for part in (await look(data_dir)).parts if part.name in told}
    assert {part.state for part in parts[True].values()} == {"external"}
    for part in parts[False].values():
        assert (part.state, part.works) == ("refused", False)
        (alarm,) = part.alarms
        assert "password in" in alarm.sentence


async def test_nats_that_another_shell_names_is_not_said_to_refuse(servers: Servers, data_dir: Path) -> None:
    """Its certificates and credentials are named there: here nobody knows with what the services ask it."""
    DataDir(data_dir).create()
    DataDir(data_dir).write(State(stack_id="told", external=["nats"], urls={"nats": wrong(servers)["nats"]}))
    (nats,) = [part for part in (await look(data_dir)).parts if part.name == "nats"]
    assert (nats.state, nats.alarms) == ("external", ())
    assert await try_connections(data_dir) == {}


async def test_embedded_nats_is_not_asked_with_what_another_one_needs(
    servers: Servers, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell may name a server of another stack, with its credentials."""
    monkeypatch.setenv(VARIABLES["nats"], "nats://elsewhere:4222")
    monkeypatch.setenv("COMITY_NATS_CREDENTIALS_FILE", str(data_dir / "none"))
    assert await server_problems("nats", servers.nats.url, {}) == []


async def test_up_says_what_an_external_server_refuses(servers: Servers) -> None:
    """Before anything is started, and not as the end of a service's log."""
    for name, url in urls(servers).items():
        await require_reachable(name, url)
    for name, url in wrong(servers).items():
        with pytest.raises(ServiceError, match="password in"):
            await require_reachable(name, url)


async def test_one_of_several_servers_is_enough(servers: Servers) -> None:
    """The first of a cluster may be away; where all are, each is named, without its user."""
    await require_reachable("nats", f"nats://u:p@127.0.0.1:1,{servers.nats.url}")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 or 127\.0\.0\.1:2; "):
        await require_reachable("nats", "nats://u:p@127.0.0.1:1,nats://u:p@127.0.0.1:2")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 or 127\.0\.0\.1:2; "):
        await require_reachable("postgres", "postgresql://u:p@127.0.0.1:1,127.0.0.1:2/x")
    assert shown("nats://u:p@one:1,nats://u:p@two:2") == "nats://one:1,nats://two:2"
