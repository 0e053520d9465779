"""A slow way back: a TCP proxy whose answers take a while."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536


@asynccontextmanager
async def slow_answers(port: int, target: Callable[[], str], *, delay_s: float) -> AsyncIterator[None]:
    """Forward connections on loopback *port* to host:port of *target*; what comes back arrives *delay_s* later.

    Args:
        target: empty while there is nobody to forward to.

    Bytes keep their order; they are delayed, not slowed down.
    """
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, target_port = target().rpartition(":")
        if not host:
            writer.close()  # it is not there yet; whoever asks will ask again
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(target_port))
        except OSError:
            writer.close()
            return
        writers.update((writer, far_writer))
        with suppress(OSError):
            await asyncio.gather(_pump(reader, far_writer, 0.0), _pump(far_reader, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass bytes on until the end, each chunk after the delay."""
    loop = asyncio.get_running_loop()
    while chunk := await reader.read(CHUNK_BYTES):
        if delay_s:
            loop.call_later(delay_s, writer.write, chunk)
        else:
            writer.write(chunk)
            await writer.drain()
    if delay_s:
        await asyncio.sleep(delay_s)
    writer.close()
