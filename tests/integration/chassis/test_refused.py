"""Each wrong secret, certificate and right has a sentence that names the setting; real servers do the refusing."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from pydantic import SecretStr

from cli.stack.provision import ensure_role, url_for
from cli.stack.server import exchange
from cli.stack.servers import NatsServer, Servers
from services.chassis.bus import NatsBus
from services.chassis.cache import RedisCache, try_cache
from services.chassis.errors import Kind, ServiceError
from services.chassis.lifecycle import load, try_servers
from services.chassis.nats_connection import try_bus
from services.chassis.nats_files import NatsFiles
from services.chassis.postgres import create_pool, try_database
from services.chassis.settings import ServiceSettings
from tests.certificates import ACCOUNT, Certificate, Nkey, certificate, nats_operator
from tests.conftest import MakeDatabase

PASSWORD = "right-and-secret"


class SetNats(NatsServer):
    """A NATS with further lines in its configuration, and its own users in place of the one there is."""

    def __init__(self, folder: Path, config: str, *, users: str = "", jetstream: bool = True) -> None:
        super().__init__(folder, logs=folder, password=PASSWORD)
        self._more, self._users, self._has_jetstream = config, users, jetstream

    def prepare(self) -> None:
        super().prepare()
        lines = (self.folder / "nats.conf").read_text().splitlines()
        kept = [line for line in lines if not (self._users and line.startswith("authorization"))]
        kept = [line for line in kept if self._has_jetstream or not line.startswith("jetstream")]
        (self.folder / "nats.conf").write_text("\n".join([*kept, self._users, self._more]) + "\n")

    async def ready(self) -> bool:
        return await super().ready() or (not self._has_jetstream and b"INFO" in await exchange(self.port, b""))


class Papers:
    """An authority, what it signed, and a stranger."""

    def __init__(self, folder: Path) -> None:
        self.authority = certificate(folder, "authority")
        self.server = certificate(folder, "server", self.authority)
        self.client = certificate(folder, "client", self.authority)
        self.other_authority = certificate(folder, "other-authority")
        self.stranger = certificate(folder, "stranger", self.other_authority)

    def files(self, *, ca: Certificate | None = None, own: Certificate | None = None) -> NatsFiles:
        return NatsFiles(
            ca=ca.path if ca else None, certificate=own.path if own else None, key=own.key if own else None
        )

    def context(self) -> ssl.SSLContext:
        """Of a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.path, self.server.key)
        return context


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


@asynccontextmanager
async def running(server: NatsServer) -> AsyncIterator[NatsServer]:
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def told(trying: Awaitable[Any]) -> str:
    """The sentence that a refusal comes with."""
    with pytest.raises(ServiceError) as caught:
        await trying
    assert caught.value.kind is Kind.UNAVAILABLE
    assert "REFUSED" in caught.value.reason, caught.value.message
    assert PASSWORD not in caught.value.message
    return caught.value.message


def connecting(url: str, files: NatsFiles | None = None) -> Awaitable[NatsBus]:
    return NatsBus.connect(url, files=files, timeout_s=60.0)


async def test_each_wrong_secret_and_certificate_of_nats_is_named(tmp_path: Path, papers: Papers) -> None:
    """Password, authority and client certificate: what is wrong is told by the setting it comes from."""
    paths = f'cert_file: "{papers.server.path}", key_file: "{papers.server.key}", ca_file: "{papers.authority.path}"'
    async with running(SetNats(tmp_path / "nats", f"tls {{ {paths}, verify: true }}")) as server:
        right, ours, own = server.url, papers.authority, papers.client
        wrong = right.replace(PASSWORD, "wrong")
        cases = {
            "NATS_CA_FILE": ((right, papers.files(own=own)), (right, papers.files(ca=papers.other_authority, own=own))),
            "NATS_CERT_FILE and NATS_KEY_FILE": (
                (right, papers.files(ca=ours)),
                (right, papers.files(ca=ours, own=papers.stranger)),
            ),
            "password in NATS_URL": ((wrong, papers.files(ca=ours, own=own)),),
        }
        for setting, tried in cases.items():
            for url, files in tried:
                assert setting in await told(connecting(url, files))
        bus = await connecting(right, papers.files(ca=ours, own=own))
        await bus.ensure_stream("identity")
        await bus.close()


async def test_nats_credentials_are_a_file(tmp_path: Path) -> None:
    """A user's JWT and nkey let a service in; those of another account's making are named."""
    operator = nats_operator()
    async with running(SetNats(tmp_path / "nats", "", users=operator.config)) as server:
        url = f"nats://127.0.0.1:{server.port}"
        own = NatsFiles(credentials=operator.credentials(tmp_path / "own.creds"))
        await try_bus(url, own)
        forged = NatsFiles(credentials=operator.credentials(tmp_path / "forged.creds", signed_by=Nkey(ACCOUNT)))
        assert "credentials in NATS_CREDENTIALS_FILE" in await told(connecting(url, forged))


async def test_another_server_of_the_cluster_is_asked_where_one_is_away(servers: Servers) -> None:
    """NATS_URL names several servers; one that is gone keeps nobody from working."""
    bus = await connecting(f"nats://comity:x@127.0.0.1:1,{servers.nats.url}")
    await bus.close()


async def test_a_server_without_tls_is_told_nothing_where_tls_is_asked_for(servers: Servers, papers: Papers) -> None:
    """Who stands between and strips TLS gets no password."""
    told_bytes = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n')
        with closing(writer):
            told_bytes.extend(await reader.read(4096))

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        for url in (f"tls://comity:{PASSWORD}@127.0.0.1:{port}", f"nats://comity:{PASSWORD}@127.0.0.1:{port}"):
            assert "does not speak TLS" in await told(connecting(url, papers.files(ca=papers.authority)))
    assert bytes(told_bytes) == b""
    assert "does not speak TLS" in await told(connecting(servers.nats.url.replace("nats://", "tls://")))


@pytest.mark.parametrize(
    "denied", ["$JS.API.STREAM.CREATE.>", "$JS.API.CONSUMER.MSG.NEXT.>", "$JS.ACK.>", "$JS.API.>", "ev.>"]
)
async def test_a_missing_right_is_found_before_it_is_missed(tmp_path: Path, denied: str) -> None:
    """A user that connects, and may not do what the services do, is told by the try."""
    rights = f'permissions: {{ publish: {{ deny: "{denied}" }} }}'
    users = f'authorization {{ users: [{{ user: comity, password: "{PASSWORD}", {rights} }}] }}'
    async with running(SetNats(tmp_path / "nats", "", users=users)) as server:
        assert "does not allow" in await told(try_bus(server.url, NatsFiles()))


async def test_a_nats_without_jetstream_is_told(tmp_path: Path) -> None:
    """Nothing could be stored there."""
    async with running(SetNats(tmp_path / "nats", "", jetstream=False)) as server:
        assert "JetStream" in await told(try_bus(server.url, NatsFiles()))


async def test_a_try_leaves_nothing_behind(nats_url: str, redis_url: str) -> None:
    """No stream, no key: it may be run beside a stack that works."""
    await try_bus(nats_url, NatsFiles())
    await try_cache(redis_url, prefix="test:")
    bus = await NatsBus.connect(nats_url)
    with pytest.raises(ServiceError, match="no stream"):
        await bus.stream_state("check")
    await bus.close()
    client = redis.asyncio.Redis.from_url(redis_url)
    assert await client.keys() == []
    await client.aclose()


@asynccontextmanager
async def tls_front(port: int, context: ssl.SSLContext, *, postgres: bool = False) -> AsyncIterator[int]:
    """A port that speaks TLS and hands on to a server that does not: those of the wheels are built without."""

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while not reader.at_eof() and (data := await reader.read(65536)):
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError), closing(writer):
            if postgres:
                await reader.readexactly(8)  # SSLRequest
                writer.write(b"S")
                await writer.drain()
            await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(hand_on(reader, inner_writer), hand_on(inner_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


async def test_each_wrong_secret_and_certificate_of_redis_is_named(
    servers: Servers, redis_url: str, papers: Papers
) -> None:
    """Password, right and authority; and a service that runs says so itself, not that it waited in vain."""
    admin = redis.asyncio.Redis.from_url(redis_url)
    await admin.acl_setuser("narrow", enabled=True, passwords=[f"+{PASSWORD}"], keys=["other:*"], categories=["+@all"])
    try:
        here = f"127.0.0.1:{servers.valkey.port}/0"
        assert "password in REDIS_URL" in await told(try_cache(f"redis://:wrong@{here}", prefix="test:"))
        assert "password in REDIS_URL" in await told(try_cache(f"redis://{here}", prefix="test:"))
        assert "may not" in await told(try_cache(f"redis://narrow:{PASSWORD}@{here}", prefix="test:"))
        async with tls_front(servers.valkey.port, papers.context()) as port:
            secure = f"rediss://:{servers.valkey.password}@127.0.0.1:{port}/0?ssl_ca_certs="
            await try_cache(f"{secure}{papers.authority.path}", prefix="test:")
            wrong = f"{secure}{papers.other_authority.path}"
            assert "ssl_ca_certs in REDIS_URL" in await told(try_cache(wrong, prefix="test:"))
            missing = f"{secure}{papers.authority.path}.gone"
            assert "cannot be read" in await told(try_cache(missing, prefix="test:"))
        cache = RedisCache(f"redis://:wrong@{here}", prefix="test:", timeout_s=5.0)
        assert "password in REDIS_URL" in await told(cache.get("key"))
        await cache.close()
    finally:
        await admin.acl_deluser("narrow")
        await admin.aclose()


async def test_each_wrong_secret_and_certificate_of_postgres_is_named(
    servers: Servers, database: MakeDatabase, papers: Papers
) -> None:
    """Password, database, right and authority; a pool tells the same as a try."""
    url = await database("chassis")
    await try_database(url)
    wrong = url.replace(servers.postgres.password, "wrong")
    assert "password in DATABASE_URL" in await told(try_database(wrong))
    assert "password in DATABASE_URL" in await told(create_pool(wrong, size=1))
    assert "no database" in await told(try_database(f"{url}_gone"))
    admin = await asyncpg.connect(servers.postgres.url)
    await ensure_role(admin, "narrow", PASSWORD)
    await admin.close()
    narrow = url_for(servers.postgres.url, "narrow", PASSWORD, "postgres")
    assert "create tables" in await told(try_database(narrow))
    assert "create roles and databases" in await told(try_database(narrow, provisions=True))
    await try_database(servers.postgres.url, provisions=True)
    async with tls_front(servers.postgres.port, papers.context(), postgres=True) as port:
        secure = url.replace(f":{servers.postgres.port}/", f":{port}/") + "?sslmode=verify-full&sslrootcert="
        await try_database(f"{secure}{papers.authority.path}")
        refusal = await told(try_database(f"{secure}{papers.other_authority.path}"))
        assert "sslrootcert in DATABASE_URL" in refusal


async def test_a_service_tries_its_servers_before_it_runs(
    servers: Servers, database: MakeDatabase, nats_url: str, redis_url: str
) -> None:
    """`--check --connect` tells everything that is wrong at once, and nothing where all is well."""
    url = await database("chassis")
    right = {"database_url": SecretStr(url), "nats_url": nats_url, "redis_url": redis_url}
    wrong = {
        "database_url": SecretStr(url.replace(servers.postgres.password, "wrong")),
        "nats_url": nats_url.replace(servers.nats.password, "wrong"),
        "redis_url": redis_url.replace(servers.valkey.password, "wrong"),
    }
    assert await try_servers("features", settings(**right)) == []
    problems = await try_servers("features", settings(**wrong))
    assert [name for name in ("DATABASE_URL", "NATS_URL", "REDIS_URL") if name in " ".join(problems)] == [
        "DATABASE_URL",
        "NATS_URL",
        "REDIS_URL",
    ]
    assert len(problems) == 3


@pytest.mark.parametrize("password", ["right-and#secret", "right-and/secret", "right-and[secret", "right-and?secret"])
async def test_a_password_that_is_not_encoded_is_no_address(password: str) -> None:
    """The setting and what to do are named, and no part of the password, by a try as by the start."""
    urls = f"postgresql://comity:{password}@h/x", f"redis://:{password}@h/0", f"nats://comity:{password}@h:4222"
    postgres, valkey, bus = urls
    problems = await try_servers("features", settings(database_url=SecretStr(postgres), redis_url=valkey, nats_url=bus))
    assert [problem.split()[0].rstrip(":") for problem in problems] == ["DATABASE_URL", "NATS_URL", "REDIS_URL"]
    for problem in [*problems, await told(create_pool(postgres, size=1))]:
        assert "percent-encode" in problem
        assert "right" not in problem
        assert "secret" not in problem
    with pytest.raises(ServiceError, match="REDIS_URL"):
        RedisCache(valkey, prefix="test:")


async def test_a_database_url_that_cannot_be_read_is_told() -> None:
    """Also where a parameter of it is none, or the port is beyond what there is."""
    for url in ("garbage", "postgresql://u@127.0.0.1/x?sslmode=bogus", "postgresql://u@127.0.0.1:99999/x"):
        assert "DATABASE_URL is no address" in await told(try_database(url))


@pytest.mark.parametrize("url", ["", "garbage", "localhost:4222", "nats://a:4222,b:4222", "nats://:4222", "nats://a:x"])
async def test_a_nats_url_that_is_none_is_told_before_it_is_dialed(url: str) -> None:
    """No outage that nobody can explain: how every server is to be given is said at once."""
    assert "nats://host:port" in await told(connecting(url))


def settings(**values: Any) -> ServiceSettings:
    return type("Told", (ServiceSettings,), {"__annotations__": {"redis_url": str}, "redis_url": ""})(**values)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "setting", "problem"),
    [
        ({"CA": "gone.pem"}, "COMITY_NATS_CA_FILE", "cannot be read"),
        ({"CA": "empty.pem"}, "COMITY_NATS_CA_FILE", "is not PEM"),
        ({"CERT": "client.pem"}, "COMITY_NATS_KEY_FILE", "belong together"),
        ({"CERT": "client.pem", "KEY": "stranger.key"}, "COMITY_NATS_CERT_FILE", "does not belong to its key"),
        ({"CREDENTIALS": "client.pem"}, "COMITY_NATS_CREDENTIALS_FILE", "no user's JWT"),
    ],
)
def test_a_file_that_is_none_is_refused_before_the_start(
    tmp_path: Path,
    papers: Papers,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    setting: str,
    problem: str,
) -> None:
    """The variable is named, and what is wrong with its file; never what is in it."""
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("COMITY_DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.setenv("COMITY_NATS_URL", "nats://localhost")
    for name, file in changes.items():
        monkeypatch.setenv(f"COMITY_NATS_{name}_FILE", str(tmp_path / file))
    with pytest.raises(ValueError, match=problem) as caught:
        load(ServiceSettings)
    assert str(caught.value).startswith(f"{setting}: ")


def test_no_password_of_any_server_is_logged() -> None:
    """Also not of the second server of a URL, or one with a comma in it."""
    url = "nats://user:one,two@first:4222, nats://user:three@second:4222"
    shown = str(settings(database_url=SecretStr("postgresql://"), nats_url=url).public()["nats_url"])
    assert shown == "nats://***@first:4222,nats://***@second:4222"
