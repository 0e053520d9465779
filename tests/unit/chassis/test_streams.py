"""Every streaming method has few places, and ends where its caller sends, takes or asks for too long."""

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any

import comity
import grpc
import pytest
from comity.common.v1 import options_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.chassis import rpc_guard
from services.chassis.rpc_guard import guard
from services.chassis.rpc_places import Places
from tests.virtual_time import in_virtual_time

PROTOS = Path(next(iter(comity.__path__)))


def services() -> list[ServiceDescriptor]:
    """Every service of every proto."""
    found = []
    for path in sorted(PROTOS.rglob("*_pb2.py")):
        module = import_module(f"comity.{'.'.join(path.relative_to(PROTOS).with_suffix('').parts)}")
        found += module.DESCRIPTOR.services_by_name.values()
    return found


STREAMS = [
    method for service in services() for method in service.methods if method.client_streaming or method.server_streaming
]
each_stream = pytest.mark.parametrize("method", STREAMS, ids=lambda method: method.full_name)


def rules_of(method: MethodDescriptor) -> Any:
    """What the proto declares of it."""
    return method.GetOptions().Extensions[options_pb2.rules]


class Call:
    """A call's context: without a deadline, and noting how the call was ended."""

    def __init__(self, peer: str = "one") -> None:
        self.ended: list[grpc.StatusCode] = []
        self.takes = 0
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return None

    async def write(self, number: int) -> None:
        """As gRPC sends: the last answer that the caller takes is followed by none."""
        if number + 1 >= self.takes:
            await asyncio.Event().wait()

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        self.ended.append(code)
        raise grpc.aio.AbortError


class Served:
    """One streaming method behind its guard; the handler takes what comes, or gives *answers* and is then silent."""

    def __init__(self, method: MethodDescriptor, answers: int = 0) -> None:
        self.places = Places(100, of="this process")
        self._sends = method.client_streaming
        handler: Any = (
            grpc.stream_unary_rpc_method_handler(self._take)
            if self._sends
            else grpc.unary_stream_rpc_method_handler(self._give)
        )
        guarded: Any = guard(method.containing_service.full_name, method.name, handler, self.places)
        self._call = guarded.stream_unary if self._sends else guarded.unary_stream
        self._answers = answers
        self.sent: asyncio.Queue[Any] = asyncio.Queue()

    async def _take(self, requests: AsyncIterator[Any], context: Any) -> Any:
        async for _ in requests:
            pass

    async def _give(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(self._answers):
            yield number
        await asyncio.Event().wait()

    def begin(self, call: Call, *, takes: int = 0) -> "asyncio.Task[None]":
        """The call as gRPC runs it: its caller sends what is put into `sent`, or takes so many answers."""
        return asyncio.create_task(self._run_sent(call) if self._sends else self._run_taken(call, takes))

    async def _run_sent(self, call: Call) -> None:
        async def requests() -> AsyncIterator[Any]:
            while True:
                yield await self.sent.get()

        await self._call(requests(), call)

    async def _run_taken(self, call: Call, takes: int) -> None:
        call.takes = takes
        await self._call(None, call)


@pytest.fixture(autouse=True)
def any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a message is another test's."""
    monkeypatch.setattr(rpc_guard, "check_of", lambda _: None)


async def ended(*calls: "asyncio.Task[None]") -> None:
    """Returns when all have ended, and what they held is given back."""
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0.1)


def test_streams_are_all_found() -> None:
    """The sweep is one over something."""
    assert {method.name for method in STREAMS} >= {"ReplayEvents", "RegisterModel", "ExportHoldings"}


@each_stream
def test_stream_declares_its_bounds(method: MethodDescriptor) -> None:
    """A cap that is small, and times that end what nobody reads before its connection is."""
    rules = rules_of(method)
    assert 0 < rules.concurrent_max <= 32
    assert 0 < rules.idle_timeout_s <= 30
    assert rules.idle_timeout_s < rules.deadline_s <= 300


@each_stream
@in_virtual_time
async def test_stream_above_its_cap_is_refused_at_once(method: MethodDescriptor) -> None:
    """Half of the places over one connection, all of them over several; what ends gives its place back."""
    served, cap = Served(method, answers=1), rules_of(method).concurrent_max
    own = [served.begin(Call("greedy")) for _ in range(cap // 2)]
    await asyncio.sleep(0.1)
    for peer in ("greedy", *(f"other {k}" for k in range(cap - cap // 2)), "late"):
        call = Call(peer)
        own.append(served.begin(call))
        await asyncio.sleep(0.1)
        assert call.ended == ([grpc.StatusCode.RESOURCE_EXHAUSTED] if peer in ("greedy", "late") else [])
    assert served.places.taken_count == cap
    await ended(*own)
    assert served.places.taken_count == 0
    again = Call("greedy")
    task = served.begin(again)
    await asyncio.sleep(0.1)
    assert not again.ended
    await ended(task)


@each_stream
@in_virtual_time
async def test_stream_that_nobody_sends_or_takes_ends(method: MethodDescriptor) -> None:
    """The call gets its status, and its place is free."""
    served, call = Served(method, answers=3), Call()
    task, idle_s = served.begin(call, takes=2), rules_of(method).idle_timeout_s
    await asyncio.sleep(idle_s - 1)
    assert (call.ended, served.places.taken_count) == ([], 1)
    await asyncio.sleep(2)
    assert (call.ended, served.places.taken_count) == ([grpc.StatusCode.DEADLINE_EXCEEDED], 0)
    await ended(task)


@each_stream
@in_virtual_time
async def test_stream_ends_at_its_deadline_however_busy(method: MethodDescriptor) -> None:
    """Also where its caller sends all the time, or waits for an answer that never comes."""
    served, call, rules = Served(method), Call(), rules_of(method)
    task = served.begin(call)
    for _ in range(rules.deadline_s - 1):
        served.sent.put_nowait(None)
        await asyncio.sleep(1)
    assert (call.ended, served.places.taken_count) == ([], 1)
    await asyncio.sleep(2)
    assert (call.ended, served.places.taken_count) == ([grpc.StatusCode.DEADLINE_EXCEEDED], 0)
    await ended(task)


def test_stream_without_bounds_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds one is told at the first start."""
    service = descriptor_pool.Default().FindServiceByName("comity.feedback.v1.FeedbackService")
    bare = options_pb2.MethodRules(concurrent_max=1, deadline_s=1)

    class Options:
        Extensions = {options_pb2.rules: bare}  # noqa: RUF012

    class Method:
        client_streaming, server_streaming = False, True
        input_type = service.methods_by_name["ReplayEvents"].input_type

        def GetOptions(self) -> Any:  # noqa: N802
            return Options

    class Service:
        methods_by_name = {"ReplayEvents": Method()}  # noqa: RUF012

    class Pool:
        def FindServiceByName(self, _: str) -> Any:  # noqa: N802
            return Service

    monkeypatch.setattr(descriptor_pool, "Default", Pool)
    handler: Any = grpc.unary_stream_rpc_method_handler(Served._give)
    with pytest.raises(ValueError, match="declare concurrent_max, idle_timeout_s and deadline_s"):
        guard("comity.feedback.v1.FeedbackService", "ReplayEvents", handler, Places(1, of="this process"))


def test_places_are_given_back_by_whoever_took_them() -> None:
    """Refused calls take none, and what is kept of connections does not grow with them."""
    places = Places(4, of="Track")
    for peer in ("a", "a", "b", "b"):
        places.take(peer)
    with pytest.raises(Exception, match="4 calls of Track run already"):
        places.take("c")
    places.give_back("b")
    with pytest.raises(Exception, match="2 calls of Track run over this connection already"):
        places.take("a")
    for peer in ("a", "a", "b"):
        places.give_back(peer)
    assert (places.taken_count, len(places._of_peers)) == (0, 0)
