"""A link: a TCP proxy in the way of one process to what it calls, which can be cut, held up, slowed, or lose a message.

It knows nothing of faults or proofs, and of protocols only the bytes that it is told to look for.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from cli.stack.ports import LOOPBACK, free_port

CHUNK_BYTES = 65_536
# What waits in a link that is held; beyond it the sender is held too, as on a real line.
CHUNKS_MAX = 256
# Between a request and the end of its connection, where only the answer is to be lost: the server has read it by then.
ANSWER_LOST_AFTER_S = 0.02


class Direction:
    """How bytes go one way: at once, or each *delay_s* later, or not before the way is open again."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def is_free(self) -> bool:
        """Whether bytes pass at once."""
        return not self.delay_s and self._open.is_set()

    def hold(self) -> None:
        """Let nothing through; what is sent waits, as it does while packets are lost."""
        self._open.clear()

    def release(self) -> None:
        """Let through what waits, and what comes."""
        self._open.set()
        self.delay_s = 0.0

    async def opened(self) -> None:
        """Returns when the way is open."""
        await self._open.wait()


class Link:
    """Forwards connections on a loopback port of its own to *target*. Use it as `async with`.

    Bytes keep their order whatever is done to them, as TCP promises.
    """

    def __init__(self) -> None:
        self.port = free_port()
        # host:port to forward to; empty while there is nobody.
        self.target = ""
        self.requests = Direction()
        self.answers = Direction()
        self._is_cut = False
        self._lose: tuple[bytes, ...] = ()
        self._loses_answer = False
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Link":
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None, "it was entered"
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._is_cut = True
        for connection in list(self._connections):
            connection.abort()

    def hold(self) -> None:
        """Let nothing through either way."""
        self.requests.hold()
        self.answers.hold()

    def lose(self, messages: Sequence[bytes], *, answer_only: bool = False) -> None:
        """Break a connection when one of these requests is sent on it: before it arrives, or before its answer does."""
        self._lose = tuple(messages)
        self._loses_answer = answer_only

    def heal(self) -> None:
        """Be as if nothing had been."""
        self._is_cut = False
        self._lose = ()
        self.requests.release()
        self.answers.release()

    def loses(self, chunk: bytes) -> bool:
        """Whether this request breaks its connection."""
        return any(message in chunk for message in self._lose)

    @property
    def loses_answer(self) -> bool:
        """Whether what breaks the connection still arrives."""
        return self._loses_answer

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a server calls this in a task"
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the end of the link; asyncio would report it as an error
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        if self._is_cut or not host:
            return
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            connection = _Connection(self, reader, writer, far_reader, far_writer)
            self._connections.add(connection)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)


class _Connection:
    """One connection through a link."""

    def __init__(
        self,
        link: Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        self._link = link
        self._writers = (writer, far_writer)
        self._is_deaf = False
        self._ways = (
            _Way(reader, far_writer, link.requests, self._request_passes),
            _Way(far_reader, writer, link.answers, lambda _: not self._is_deaf),
        )

    async def run(self) -> None:
        """Pass bytes both ways until either side ends."""
        tasks = [asyncio.create_task(work) for way in self._ways for work in (way.deliver(), way.read())]
        try:
            # What was sent before an end still arrives: it is the delivery that ends a connection.
            await asyncio.wait(tasks[::2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        """Break it."""
        for writer in self._writers:
            writer.transport.abort()

    def _request_passes(self, chunk: bytes) -> bool:
        if not self._link.loses(chunk):
            return True
        if self._link.loses_answer:
            self._is_deaf = True
            asyncio.get_running_loop().call_later(ANSWER_LOST_AFTER_S, self.abort)
            return True
        self.abort()
        return False


class _Way:
    """One direction of one connection.

    Args:
        passes: whether a chunk is let through at all.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
        passes: Callable[[bytes], bool],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._direction = direction
        self._passes = passes
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)
        # Queued and not yet written: nothing may overtake it.
        self._waiting_count = 0

    async def read(self) -> None:
        """Take what comes, until the end."""
        loop = asyncio.get_running_loop()
        try:
            while chunk := await self._reader.read(CHUNK_BYTES):
                if not self._passes(chunk):
                    continue
                if not self._waiting_count and self._direction.is_free:
                    self._writer.write(chunk)
                    await self._writer.drain()
                else:
                    self._waiting_count += 1
                    await self._queue.put((loop.time() + self._direction.delay_s, chunk))
        except OSError:
            pass  # broken is ended
        await self._queue.put((0.0, b""))

    async def deliver(self) -> None:
        """Write what waits when it is due, until the end."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                due_s, chunk = await self._queue.get()
                await self._direction.opened()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if not chunk:
                    return
                self._writer.write(chunk)
                await self._writer.drain()
                self._waiting_count -= 1
