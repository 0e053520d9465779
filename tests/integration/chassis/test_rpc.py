"""The server's guard and the client's call, over a real connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import consent_service_pb2_grpc as consent_grpc
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from comity.features.v1 import features_service_pb2 as features_pb
from comity.features.v1 import features_service_pb2_grpc as features_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY
from pydantic import SecretStr

from services.chassis import rpc_client, rpc_guard
from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.rpc_server import METADATA_BYTES_MAX, RpcServer
from services.chassis.settings import ServiceSettings
from services.chassis.status import from_call_error


def settings(**changes: Any) -> ServiceSettings:
    values = {"database_url": SecretStr("postgres://"), "nats_url": "nats://", "drain_s": 0.0, "stop_grace_s": 1.0}
    return ServiceSettings(**{**values, **changes})


class Consent(consent_grpc.ConsentServiceServicer):
    """Answers as its attributes say."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seen_remaining_s: float | None = None
        self.calls = self.described = 0
        self.waits: asyncio.Event | None = None
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    async def Evaluate(self, request: consent_pb.EvaluateRequest, context: Any) -> consent_pb.EvaluateResponse:  # noqa: N802
        self.calls += 1
        self.seen_remaining_s = remaining_s()
        self.entered.set()
        if self.error is not None:
            raise self.error
        if self.waits is not None:
            try:
                await self.waits.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return consent_pb.EvaluateResponse(policy_version="v1")

    async def DescribeConsent(  # noqa: N802
        self, request: consent_pb.DescribeConsentRequest, context: Any
    ) -> consent_pb.DescribeConsentResponse:
        self.described += 1
        return consent_pb.DescribeConsentResponse()

    async def History(self, request: consent_pb.HistoryRequest, context: Any) -> consent_pb.HistoryResponse:  # noqa: N802
        self.seen_remaining_s = remaining_s()
        return consent_pb.HistoryResponse()


class Features(features_grpc.FeatureServiceServicer):
    async def GetItemColumns(  # noqa: N802
        self, request: features_pb.GetItemColumnsRequest, context: Any
    ) -> AsyncIterator[features_pb.GetItemColumnsResponse]:
        yield features_pb.GetItemColumnsResponse(columns_version="1")
        if request.held_version == "fail":
            raise ServiceError(Kind.NOT_FOUND, "NO_COLUMNS", "there are none")
        yield features_pb.GetItemColumnsResponse(columns_version="2", last=True)


class Release(decision_grpc.ReleaseServiceServicer):
    async def RegisterModel(  # noqa: N802
        self, request_iterator: AsyncIterator[decision_pb.RegisterModelRequest], context: Any
    ) -> decision_pb.RegisterModelResponse:
        size = 0
        async for request in request_iterator:
            size += len(request.chunk)
        return decision_pb.RegisterModelResponse(model_version=str(size))


class Served:
    """A server with its servicers, and a channel to it."""

    def __init__(self, server: RpcServer, channel: grpc.aio.Channel, consent: Consent) -> None:
        self.server = server
        self.channel = channel
        self.consent = consent
        self.stub = consent_grpc.ConsentServiceStub(channel)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server, consent = RpcServer(settings()), Consent()  # type: ignore[abstract]
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, consent)
    server.add(features_grpc.add_FeatureServiceServicer_to_server, Features())  # type: ignore[abstract]
    server.add(decision_grpc.add_ReleaseServiceServicer_to_server, Release())  # type: ignore[abstract]
    channel = rpc_client.connect(f"127.0.0.1:{await server.start()}")
    assert await rpc_client.warm(channel)
    yield Served(server, channel, consent)
    await channel.close()
    await server.stop()


def question() -> consent_pb.EvaluateRequest:
    query = consent_pb.EvaluateQuery(purposes=["measurement"])
    query.members.add(subject_id="a" * 26)
    return consent_pb.EvaluateRequest(queries=[query])


async def refusal_of(call: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value


@asynccontextmanager
async def serving(registrar: Any, servicer: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A server with this servicer alone, and a channel to it."""
    server = RpcServer(settings())
    server.add(registrar, servicer)
    channel = rpc_client.connect(f"127.0.0.1:{await server.start()}")
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop()


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(50):
            await call
    return caught.value


async def test_a_call_is_answered_and_its_deadline_arrives(served: Served) -> None:
    """The handler has at most what the caller gave."""
    answer = await rpc_client.call(served.stub.Evaluate, question(), 5.0)
    assert answer.policy_version == "v1"
    assert served.consent.seen_remaining_s is not None
    # gRPC rounds a timeout of some seconds up to the next 10 ms.
    assert 0.0 < served.consent.seen_remaining_s <= 5.02


async def test_the_deadline_shrinks_on_the_way(served: Served) -> None:
    """A call never gets more than what the call it serves has left."""
    with deadline_scope(2.0):
        await rpc_client.call(served.stub.Evaluate, question(), 60.0, shave_s=0.5)
    assert served.consent.seen_remaining_s is not None
    assert served.consent.seen_remaining_s <= 1.52


async def test_no_time_left_is_refused_without_a_call(served: Served) -> None:
    """A call whose time is up does not leave."""
    with deadline_scope(0.001):
        error = await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 60.0))
    assert error.kind is Kind.DEADLINE
    assert served.consent.calls == 0


async def test_a_method_that_needs_a_deadline_refuses_a_call_without(served: Served) -> None:
    """The error names the field and the remedy."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Evaluate(question())
    error = from_call_error(caught.value)
    assert (error.kind, error.reason) == (Kind.INVALID, "DEADLINE_REQUIRED")
    assert error.problems == (FieldProblem("deadline", "is missing; give the call of Evaluate a timeout"),)
    request = consent_pb.HistoryRequest()
    request.subject.subject_id = "a" * 26
    await served.stub.History(request)
    assert served.consent.seen_remaining_s is None


async def test_limits_are_enforced_before_the_handler(served: Served) -> None:
    """Every wrong field comes back with its path and what is allowed."""
    request = question()
    request.queries[0].purposes.extend(["p"] * 100)
    request.queries.add().members.add(subject_id="no")
    request.queries.add()
    error = await refusal_of(rpc_client.call(served.stub.Evaluate, request, 5.0))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_FIELD")
    assert set(error.problems) == {
        FieldProblem("queries[0].purposes", "has 101 entries; at most 64 are allowed"),
        FieldProblem("queries[1].members[0].subject_id", "does not match [a-z2-7]{26}"),
        FieldProblem("queries[2].members", "is empty; give at least one"),
    }
    assert served.consent.calls == 0


@pytest.mark.parametrize("size", [300_000, 2_000_000])
async def test_an_oversize_request_is_refused_with_its_limit(served: Served, size: int) -> None:
    """A 2 MB request gets a typed error that says how much is allowed."""
    request = consent_pb.HistoryRequest()
    request.subject.identities.add(namespace="user_id", value="v" * size)
    error = await refusal_of(rpc_client.call(served.stub.History, request, 5.0))
    assert (error.kind, error.reason) == (Kind.INVALID, "REQUEST_TOO_LARGE")
    assert error.problems[0].field == "HistoryRequest"
    assert "at most 262,144 are allowed" in error.problems[0].problem


async def test_bytes_that_are_no_message_are_refused(served: Served) -> None:
    """What cannot be parsed is the caller's error, not ours."""
    method: Any = served.channel.unary_unary("/comity.consent.v1.ConsentService/Evaluate")
    error = await refusal_of(rpc_client.call(method, b"\xff\xff\xff", 5.0))
    assert (error.kind, error.reason) == (Kind.INVALID, "MALFORMED_REQUEST")


async def test_every_kind_of_error_comes_back_as_it_was_raised(served: Served) -> None:
    """Kind, reason, message, fields and retry delay survive the wire."""
    for kind in Kind:
        problems = (FieldProblem("a.b[0]", "is wrong; mend it"),)
        served.consent.error = ServiceError(kind, "SOME_REASON", "a sentence", problems=problems, retry_after_s=1.5)
        error = await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 5.0))
        assert (error.kind, error.reason, error.message) == (kind, "SOME_REASON", "a sentence")
        assert error.problems == problems
        assert error.retry_after_s == 1.5


async def test_twenty_long_problems_fit_into_an_answer(served: Served) -> None:
    """The details stay within what a header block may have."""
    problems = tuple(FieldProblem(f"f{i}." + "x" * 300, "y" * 300) for i in range(40))
    served.consent.error = ServiceError(Kind.INVALID, "INVALID_FIELD", "z" * 3000, problems=problems)
    error = await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 5.0))
    assert (error.kind, len(error.problems)) == (Kind.INVALID, 20)


async def test_a_bug_tells_the_caller_nothing(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other exception is INTERNAL without its text, and is logged."""
    served.consent.error = ValueError("person@example.com")
    error = await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 5.0))
    assert error.kind is Kind.INTERNAL
    assert "person" not in error.message + error.reason
    assert "call failed" in capsys.readouterr().out


async def test_every_call_is_counted_by_its_outcome(served: Served) -> None:
    """Latency is measured by method and code, for refusals as well."""

    def count(code: str) -> float:
        labels = {"method": "/comity.consent.v1.ConsentService/Evaluate", "code": code}
        return REGISTRY.get_sample_value("comity_rpc_server_latency_seconds_count", labels) or 0.0

    before = [count(code) for code in ("OK", "NOT_FOUND", "INTERNAL")]
    await rpc_client.call(served.stub.Evaluate, question(), 5.0)
    for served.consent.error in (ServiceError(Kind.NOT_FOUND, "NONE", "none"), KeyError("bug")):
        await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 5.0))
    assert [count(code) for code in ("OK", "NOT_FOUND", "INTERNAL")] == [number + 1 for number in before]


async def test_a_call_that_is_cancelled_stops_its_handler(served: Served) -> None:
    """No work goes on for a caller that has left."""
    served.consent.waits = asyncio.Event()
    task = asyncio.ensure_future(rpc_client.call(served.stub.Evaluate, question(), 60.0))
    async with asyncio.timeout(50):
        await served.consent.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await served.consent.cancelled.wait()


async def test_a_call_that_is_late_ends_for_both_sides(served: Served) -> None:
    """The caller has DEADLINE, the handler is cancelled."""
    served.consent.waits = asyncio.Event()
    error = await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 2.0))
    assert error.kind is Kind.DEADLINE
    async with asyncio.timeout(50):
        await served.consent.cancelled.wait()


async def test_a_stream_of_answers_is_guarded(served: Served) -> None:
    """Limits hold before the first answer, and an error after it arrives typed; it has the time that the call has."""
    ask = features_grpc.FeatureServiceStub(served.channel).GetItemColumns

    async def versions(request: features_pb.GetItemColumnsRequest) -> list[str]:
        return [one.columns_version async for one in rpc_client.stream(ask, request, 10.0)]

    request = features_pb.GetItemColumnsRequest(feature_set_version="v")
    assert await versions(request) == ["1", "2"]
    wrong = await refusal_of(versions(features_pb.GetItemColumnsRequest()))
    assert wrong.problems[0].field == "feature_set_version"
    request.held_version = "fail"
    assert (await refusal_of(versions(request))).reason == "NO_COLUMNS"
    with deadline_scope(0.001):
        assert (await refusal_of(versions(request))).kind is Kind.DEADLINE


async def test_a_stream_of_requests_is_guarded_one_by_one(served: Served) -> None:
    """Every message of a stream keeps its limits, the later ones too."""
    stub = decision_grpc.ReleaseServiceStub(served.channel)
    chunk = decision_pb.RegisterModelRequest(chunk=b"x" * 1000)
    answer = await stub.RegisterModel(iter([chunk, chunk]), timeout=5)
    assert answer.model_version == "2000"
    bad = decision_pb.RegisterModelRequest(chunk=b"x" * 131_073)
    error = await refusal_of(rpc_client.call(stub.RegisterModel, iter([chunk, bad]), 5.0))
    assert error.problems == (FieldProblem("chunk", "has 131073 bytes; at most 131,072 are allowed"),)


async def test_idle_streams_of_one_connection_stop_nobody(served: Served) -> None:
    """Thousands of uploads that send nothing: those above the cap are refused, and calls and health are answered."""
    upload = decision_grpc.ReleaseServiceStub(served.channel).RegisterModel
    idle = [upload() for _ in range(2_050)]
    try:
        answer = await rpc_client.call(served.stub.Evaluate, question(), 20.0)
        assert answer.policy_version == "v1"
        health = health_pb2_grpc.HealthStub(served.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=20)).status == 1
        refused = from_call_error(await _error_of(idle[-1]))
        assert (refused.kind, refused.reason) == (Kind.EXHAUSTED, "TOO_MANY_CALLS")
        assert refused.retry_after_s
    finally:
        for call in idle:
            call.cancel()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end soon when nobody sends or takes anything."""
    declared = rpc_guard._Method.__init__

    def hurried(method: Any, *arguments: Any) -> None:
        declared(method, *arguments)
        method.idle_timeout_s = 0.3

    monkeypatch.setattr(rpc_guard._Method, "__init__", hurried)


@pytest.mark.usefixtures("impatient")
async def test_stream_that_sends_nothing_is_ended_with_its_reason() -> None:
    """Its caller is told, also one that has sent before."""
    async with serving(decision_grpc.add_ReleaseServiceServicer_to_server, Release()) as channel:  # type: ignore[abstract]
        call = decision_grpc.ReleaseServiceStub(channel).RegisterModel()
        await call.write(decision_pb.RegisterModelRequest(chunk=b"x"))
        ended = from_call_error(await _error_of(call))
        assert (ended.kind, ended.reason) == (Kind.DEADLINE, "STREAM_IDLE")


class Flood(features_grpc.FeatureServiceServicer):
    """Far more than a connection holds."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def GetItemColumns(  # noqa: N802
        self, request: features_pb.GetItemColumnsRequest, context: Any
    ) -> AsyncIterator[features_pb.GetItemColumnsResponse]:
        try:
            for _ in range(1_000):
                yield features_pb.GetItemColumnsResponse(columns_version="x" * 1_000_000)
        finally:
            self.gone.set()


async def _read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.usefixtures("impatient")
async def test_stream_that_nobody_reads_is_ended_with_its_reason() -> None:
    """What it held is free at once; who reads on later gets what was on its way, and then the status."""
    flood = Flood()  # type: ignore[abstract]
    async with serving(features_grpc.add_FeatureServiceServicer_to_server, flood) as channel:
        request = features_pb.GetItemColumnsRequest(feature_set_version="v")
        call = features_grpc.FeatureServiceStub(channel).GetItemColumns(request)
        await call.read()
        async with asyncio.timeout(50):
            await flood.gone.wait()
        ended = from_call_error(await _error_of(_read_on(call)))
        assert (ended.kind, ended.reason) == (Kind.DEADLINE, "STREAM_IDLE")


async def test_process_takes_so_many_calls_and_health_beside() -> None:
    """The call above is refused with when to try again."""
    server, consent = RpcServer(settings(concurrent_calls_max=1)), Consent()  # type: ignore[abstract]
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, consent)
    channel = rpc_client.connect(f"127.0.0.1:{await server.start()}")
    stub, consent.waits = consent_grpc.ConsentServiceStub(channel), asyncio.Event()
    first = asyncio.ensure_future(rpc_client.call(stub.Evaluate, question(), 30.0))
    async with asyncio.timeout(50):
        await consent.entered.wait()
    error = await refusal_of(rpc_client.call(stub.Evaluate, question(), 10.0))
    assert (error.kind, error.reason) == (Kind.EXHAUSTED, "TOO_MANY_CALLS")
    health = health_pb2_grpc.HealthStub(channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1
    consent.waits.set()
    assert (await first).policy_version == "v1"
    await channel.close()
    await server.stop()


@pytest.mark.parametrize("size", [METADATA_BYTES_MAX, 200_000])
async def test_headers_that_are_too_large_are_refused_with_the_limit(served: Served, size: int) -> None:
    """gRPC itself refuses them: what comes back names the limit and the remedy, and is tried no second time."""
    metadata = (("x-large", "a" * size),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Evaluate(question(), timeout=5, metadata=metadata)
    error = from_call_error(caught.value, "consent.Evaluate")
    assert (error.kind, error.reason, error.problems[0].field) == (Kind.INVALID, "METADATA_TOO_LARGE", "metadata")
    assert f"{METADATA_BYTES_MAX:,} bytes" in error.message
    assert served.consent.calls == 0


async def test_headers_within_the_limit_are_taken_every_time(served: Served) -> None:
    """Between two limits of its own gRPC would refuse some of the calls and not others."""
    metadata = (("x-large", "a" * (METADATA_BYTES_MAX - 2_000)),)
    for _ in range(10):
        await served.stub.Evaluate(question(), timeout=5, metadata=metadata)


async def test_a_method_that_is_not_implemented_says_so(served: Served) -> None:
    """A servicer may leave methods out."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Revoke(consent_pb.RevokeRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_answers(served: Served) -> None:
    """A probe finds what is served."""
    health = health_pb2_grpc.HealthStub(served.channel)
    for name in ("", "comity.consent.v1.ConsentService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_answers_where_a_setting_turns_it_on(served: Served) -> None:
    """A person with a generic client finds what is served, on the internal port and where it was asked for."""
    server = RpcServer(settings(public_listen="127.0.0.1:0", reflection=True))
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, Consent())  # type: ignore[abstract]
    port = await server.start()
    try:
        assert await reflected(f"127.0.0.1:{port}") >= {"comity.consent.v1.ConsentService", "grpc.health.v1.Health"}
        for silent in (server.public_port, served.server.port):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reflected(f"127.0.0.1:{silent}")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop()


async def reflected(address: str) -> set[str]:
    """The services that the server at the address tells of."""
    async with rpc_client.connect(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [one async for one in stub.ServerReflectionInfo(iter([request]), timeout=5)]
    return {service.name for service in answers[0].list_services_response.service}


async def test_a_drain_lets_calls_in_flight_end() -> None:
    """Stop says not serving first, then waits for what it has accepted; no call is lost."""
    # Long enough for a question in between on a busy machine.
    server, consent = RpcServer(settings(drain_s=2.0, stop_grace_s=10.0)), Consent()  # type: ignore[abstract]
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, consent)
    channel = rpc_client.connect(f"127.0.0.1:{await server.start()}")
    stub, health = consent_grpc.ConsentServiceStub(channel), health_pb2_grpc.HealthStub(channel)
    consent.waits = asyncio.Event()
    call = asyncio.ensure_future(rpc_client.call(stub.Evaluate, question(), 30.0))
    async with asyncio.timeout(50):
        await consent.entered.wait()
        stopping = asyncio.ensure_future(server.stop())
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        consent.waits.set()
        assert (await call).policy_version == "v1"
        await stopping
    error = await refusal_of(rpc_client.call(stub.Evaluate, question(), 10.0))
    assert error.kind is Kind.UNAVAILABLE
    await channel.close()


async def test_an_unavailable_answer_is_tried_at_most_three_times(served: Served) -> None:
    """The retry policy is the channel's: two retries, on UNAVAILABLE only."""
    served.consent.error = ServiceError(Kind.UNAVAILABLE, "AWAY", "away")
    await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 5.0))
    assert served.consent.calls == 3
    served.consent.error = ServiceError(Kind.CONFLICT, "NO", "no")
    await refusal_of(rpc_client.call(served.stub.Evaluate, question(), 5.0))
    assert served.consent.calls == 4


async def test_a_channel_finds_a_service_that_starts_later(unused_tcp_port: int) -> None:
    """Services start in any order, and are found again after a restart."""
    channel = rpc_client.connect(f"127.0.0.1:{unused_tcp_port}")
    assert not await rpc_client.warm(channel, timeout_s=0.2)
    server = RpcServer(settings(listen=f"127.0.0.1:{unused_tcp_port}"))
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, Consent())  # type: ignore[abstract]
    await server.start()
    assert await rpc_client.warm(channel, timeout_s=10.0)
    await channel.close()
    await server.stop()


async def test_a_port_that_is_taken_is_an_error(served: Served) -> None:
    """Without reuse_port a second server does not silently take half of the calls."""
    with pytest.raises(OSError, match="in use"):
        await RpcServer(settings(listen=f"127.0.0.1:{served.server.port}")).start()


async def test_a_handler_that_would_block_the_loop_is_refused() -> None:
    """A servicer whose method is not asynchronous cannot be added."""

    class Blocking(consent_grpc.ConsentServiceServicer):
        def Evaluate(self, request: Any, context: Any) -> Any:  # noqa: N802
            return None

    with pytest.raises(ValueError, match="must be a coroutine function"):
        RpcServer(settings()).add(consent_grpc.add_ConsentServiceServicer_to_server, Blocking())  # type: ignore[abstract]


async def test_the_public_port_serves_what_backends_may_call_and_nothing_else() -> None:
    """Also nothing that is only listed: who reaches the port cannot find out what else there is."""
    server, consent = RpcServer(settings(public_listen="127.0.0.1:0")), Consent()  # type: ignore[abstract]
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, consent)
    server.add(features_grpc.add_FeatureServiceServicer_to_server, Features())  # type: ignore[abstract]
    await server.start()
    channel = rpc_client.connect(f"127.0.0.1:{server.public_port}")
    try:
        stub = consent_grpc.ConsentServiceStub(channel)
        request = consent_pb.HistoryRequest()
        request.subject.subject_id = "a" * 26
        assert await rpc_client.call(stub.History, request, 5.0) == consent_pb.HistoryResponse()
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1
        columns = features_grpc.FeatureServiceStub(channel).GetItemColumns(
            features_pb.GetItemColumnsRequest(), timeout=5
        )
        describe = stub.DescribeConsent(consent_pb.DescribeConsentRequest(), timeout=5)
        for closed in (describe, columns.read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await closed
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert consent.described == 0
    finally:
        await channel.close()
        await server.stop()
