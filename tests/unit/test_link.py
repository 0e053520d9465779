"""A link passes bytes in order, and can be cut, held, slowed, and made to lose a message."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bench.prove.proxy import Link
from cli.stack.processes import wait_until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE_S = 10.0


@asynccontextmanager
async def echo_behind(link: Link, heard: list[bytes]) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    """A server behind the link that answers every line with itself; gives what connects to it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        opened.append(writer)
        return reader, writer

    async with link:
        link.target = f"127.0.0.1:{port}"
        async with asyncio.timeout(PATIENCE_S):
            yield connect
        for writer in opened:
            writer.transport.abort()
    server.close()


async def ask(streams: Streams, line: bytes) -> bytes:
    streams[1].write(line)
    return await streams[0].readline()


async def ended(streams: Streams) -> bool:
    """Whether the connection ended instead of answering."""
    try:
        return await streams[0].read(1) == b""
    except ConnectionError:
        return True


async def test_bytes_pass() -> None:
    """Nothing is done to them unless asked."""
    link = Link()
    async with echo_behind(link, []) as connect:
        assert await ask(await connect(), b"hello\n") == b"hello\n"


async def test_a_cut_ends_connections_and_refuses_new_ones_until_it_is_healed() -> None:
    """As a partition that is noticed."""
    link = Link()
    async with echo_behind(link, []) as connect:
        streams = await connect()
        assert await ask(streams, b"hello\n") == b"hello\n"
        link.cut()
        assert await ended(streams)
        assert await ended(await connect())
        link.heal()
        assert await ask(await connect(), b"again\n") == b"again\n"


async def test_what_is_held_arrives_in_order_when_it_is_healed() -> None:
    """As a partition that is not noticed: bytes are late, never lost and never overtaken."""
    link, heard = Link(), list[bytes]()
    async with echo_behind(link, heard) as connect:
        streams = await connect()
        assert await ask(streams, b"0\n") == b"0\n"
        link.hold()
        for number in range(1, 20):
            streams[1].write(b"%d\n" % number)
            await streams[1].drain()
        assert heard == [b"0\n"]
        link.heal()
        streams[1].write(b"20\n")
        assert [await streams[0].readline() for _ in range(20)] == [b"%d\n" % number for number in range(1, 21)]


async def test_held_answers_were_acted_on() -> None:
    """The request arrives while its answer waits."""
    link, heard = Link(), list[bytes]()
    async with echo_behind(link, heard) as connect:
        streams = await connect()
        link.answers.hold()
        streams[1].write(b"done\n")
        assert await wait_until(lambda: heard == [b"done\n"], PATIENCE_S)
        link.heal()
        assert await streams[0].readline() == b"done\n"


async def test_a_delay_that_ends_does_not_reorder() -> None:
    """What comes after the delay was lifted still waits for what came before."""
    link, heard = Link(), list[bytes]()
    async with echo_behind(link, heard) as connect:
        streams = await connect()
        link.answers.delay_s = 0.05
        streams[1].write(b"slow\n")
        await streams[1].drain()
        assert await wait_until(lambda: heard == [b"slow\n"], PATIENCE_S)
        link.heal()
        streams[1].write(b"fast\n")
        assert [await streams[0].readline() for _ in range(2)] == [b"slow\n", b"fast\n"]


@pytest.mark.parametrize("answer_only", [False, True])
async def test_a_message_is_lost_on_its_way_there_or_back(answer_only: bool) -> None:
    """Either way the sender sees its connection end; only one way it was heard."""
    link, heard = Link(), list[bytes]()
    async with echo_behind(link, heard) as connect:
        streams = await connect()
        link.lose([b"COMMIT"], answer_only=answer_only)
        assert await ask(streams, b"BEGIN\n") == b"BEGIN\n"
        streams[1].write(b"COMMIT\n")
        assert await ended(streams)
        assert heard == ([b"BEGIN\n", b"COMMIT\n"] if answer_only else [b"BEGIN\n"])
        link.heal()
        assert await ask(await connect(), b"COMMIT\n") == b"COMMIT\n"
