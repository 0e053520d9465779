"""Models that must not decide: refused when they come, not loaded when kept, taken off when they are wrong."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb

from bench.prove.hostile_files import HOSTILE, TRIGGER, endless, sound
from services.chassis import alarms
from services.chassis.alarms import Alarm
from services.chassis.errors import Kind, ServiceError
from services.decision.domain.release import signed_text
from services.decision.handlers import releases
from services.decision.ranker import OnnxLoader
from tests.integration.decision.conftest import (
    FEATURE_SET,
    MODEL_KEY,
    REGISTER_TIMEOUT_S,
    TIMEOUT_S,
    Deciding,
    Start,
    ask,
    parts,
)
from tests.integration.decision.test_deciding import refusal, replayed
from tests.unit.decision.onnx_models import linear
from tests.waiting import eventually

WIDTH = len(FEATURE_SET.columns)
HOUR = next(place for place, column in enumerate(FEATURE_SET.columns) if column.name == "hour")
INSERT_SQL = """
INSERT INTO models (name, sha256, feature_set_version, columns_count, metrics, onnx, signature, registered_unsigned)
VALUES ('ranker', $1, $2, $3, '{}', $4, $5, $6)
"""
CHOOSE_SQL = "UPDATE active_models SET sha256 = $1, activated_at = now() WHERE name = 'ranker'"
VERDICT_SQL = "INSERT INTO model_verdicts (sha256, columns_count, checker, problem) VALUES ($1, $2, $3, '')"


async def stored(
    deciding: Deciding, onnx: bytes, *, signature: bytes | None = None, unsigned: bool = True, verdict: bool = False
) -> str:
    """Put a model into the database and let it decide, as though it had always been there; its version.

    Args:
        unsigned: it is of before models had to be signed.
        verdict: its trial found nothing wrong.
    """
    sha256 = hashlib.sha256(onnx).hexdigest()
    connection = await asyncpg.connect(deciding.url)
    try:
        async with connection.transaction():
            await connection.execute(INSERT_SQL, sha256, FEATURE_SET.version, WIDTH, onnx, signature, unsigned)
            if verdict:
                await connection.execute(VERDICT_SQL, sha256, WIDTH, OnnxLoader.checker)
            await connection.execute(CHOOSE_SQL, sha256)
    finally:
        await connection.close()
    return f"ranker@{sha256}"


async def decides(deciding: Deciding, version: str) -> None:
    """Returns once this model ranks."""

    async def ranks() -> bool:
        answer = await deciding.decide()
        return (answer.reason, answer.versions.model) == (events_pb.REASON_RANKED, version)

    await eventually(ranks, within_s=60)


async def listed(deciding: Deciding) -> dict[str, pb.RegisteredModel]:
    response = await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
    return {f"{model.name}@{model.sha256}": model for model in response.models}


@pytest.mark.parametrize("name", ["loop", "deep_tree", "keeps_missing"])
async def test_a_hostile_model_is_refused_with_its_reason(deciding: Deciding, name: str) -> None:
    """Nothing of it is kept, and what decides goes on."""
    version = await deciding.learn()
    sent = iter(parts(HOSTILE[name][0](WIDTH)))
    error = await refusal(deciding.release.RegisterModel(sent, timeout=REGISTER_TIMEOUT_S))
    assert (error.kind, error.reason) == (Kind.INVALID, "MODEL_REFUSED")
    assert HOSTILE[name][1] in error.message
    assert set(await listed(deciding)) == {version}
    await decides(deciding, version)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"signature": b""}, "comity models sign"),
        ({"signature": b"x" * 64}, "not signed by the site's model key"),
        ({"signature": MODEL_KEY.sign(signed_text(f"other@{'0' * 64}"))}, "not signed by the site's model key"),
    ],
)
async def test_a_model_that_is_not_signed_is_refused(deciding: Deciding, header: dict[str, Any], said: str) -> None:
    """Before a byte of it is taken."""
    sent = iter(parts(linear(WIDTH).SerializeToString(), **header)[:1])
    error = await refusal(deciding.release.RegisterModel(sent, timeout=TIMEOUT_S))
    assert (error.reason, said in error.message) == ("MODEL_REFUSED", True)


async def test_a_known_model_takes_a_newer_signature(deciding: Deciding) -> None:
    """So one of before can be signed, and a key be changed."""
    onnx = linear(WIDTH)
    data = onnx.SerializeToString()
    await deciding.learn(linear(WIDTH, weights=[2.0] * WIDTH))
    version = await stored(deciding, data)
    await decides(deciding, version)
    assert (await deciding.register(onnx)).already_registered
    connection = await asyncpg.connect(deciding.url)
    kept = await connection.fetchval("SELECT signature FROM models WHERE sha256 = $1", version.partition("@")[2])
    await connection.close()
    assert kept == MODEL_KEY.sign(signed_text(version))


async def test_one_registration_is_taken_at_a_time(deciding: Deciding) -> None:
    """The second is told to come back, and nothing of it is held meanwhile."""
    may_go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[pb.RegisterModelRequest]:
        header, *chunks = parts(linear(WIDTH).SerializeToString())
        yield header
        await may_go_on.wait()
        for chunk in chunks:
            yield chunk

    first = asyncio.create_task(_called(deciding.release.RegisterModel(slowly(), timeout=REGISTER_TIMEOUT_S)))

    async def is_refused() -> bool:
        # Another file: of what is being sent here nothing is taken.
        sent = iter(parts(b"no model"))
        told.append(await refusal(deciding.release.RegisterModel(sent, timeout=REGISTER_TIMEOUT_S)))
        return told[-1].reason == "REGISTRATION_UNDER_WAY"

    told: list[ServiceError] = []
    await eventually(is_refused, within_s=60)
    error = told[-1]
    assert (error.kind, error.reason) == (Kind.EXHAUSTED, "REGISTRATION_UNDER_WAY")
    assert error.retry_after_s
    may_go_on.set()
    assert (await first).model_version


async def _called(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("sent_count", [0, 1, 2])
async def test_an_upload_that_stands_still_is_ended(
    deciding: Deciding, monkeypatch: pytest.MonkeyPatch, sent_count: int
) -> None:
    """Before its header, after it, and in the middle; then the next one is taken."""
    monkeypatch.setattr(releases, "IDLE_S_MAX", 0.2)
    over = asyncio.Event()

    async def still() -> AsyncIterator[pb.RegisterModelRequest]:
        for part in parts(linear(WIDTH).SerializeToString())[:sent_count]:
            yield part
        await over.wait()

    error = await refusal(deciding.release.RegisterModel(still(), timeout=REGISTER_TIMEOUT_S))
    over.set()
    assert (error.kind, error.reason) == (Kind.DEADLINE, "UPLOAD_TOO_SLOW")
    assert not (await deciding.register(linear(WIDTH))).already_registered


@pytest.mark.parametrize(
    ("onnx", "options"),
    [
        pytest.param(HOSTILE["deep_tree"][0](WIDTH), {}, id="ends_the_process"),
        pytest.param(endless(WIDTH), {}, id="endless"),
        pytest.param(b"no model", {}, id="no_model"),
        pytest.param(sound(WIDTH), {"unsigned": False}, id="unsigned"),
        pytest.param(sound(WIDTH), {"signature": b"x" * 64}, id="wrongly_signed"),
    ],
)
async def test_a_hostile_model_that_is_kept_keeps_nobody_from_starting(
    start: Start, deciding: Deciding, onnx: bytes, options: dict[str, Any]
) -> None:
    """The one before decides, here and on a replica that starts; the alarm and the list of models say so."""
    before = await deciding.learn()
    version = await stored(deciding, onnx, **options)

    async def is_told() -> bool:
        return bool((await listed(deciding))[version].stopped_why) and Alarm.MODEL_STOPPED in alarms.standing()

    async def is_well() -> bool:
        return Alarm.MODEL_STOPPED not in alarms.standing()

    await eventually(is_told, within_s=60)
    other = await start()
    await other.with_columns()
    for replica in (deciding, other):
        await decides(replica, before)
        models = await listed(replica)
        assert (models[version].active, models[before].active) == (False, True)
    await deciding.learn(linear(WIDTH, weights=[5.0] * WIDTH))
    # The other replica's alarms are this process' own, too.
    await eventually(is_well, within_s=60)


async def test_a_model_of_before_signatures_serves_and_replays(deciding: Deciding) -> None:
    """The registry's own record says that it was registered then."""
    await deciding.learn()
    version = await stored(deciding, linear(WIDTH, weights=[4.0] * WIDTH).SerializeToString())
    await decides(deciding, version)
    assert (await replayed(deciding, (await deciding.decide()).decision_id)).identical


async def test_a_model_that_hangs_is_taken_off_and_the_one_before_put_back(start: Start, deciding: Deciding) -> None:
    """Everywhere and for good, also where its trial had seen nothing; the call that met it had its answer."""
    before = await deciding.learn()
    version = await stored(deciding, endless(WIDTH, column=HOUR), verdict=True)
    await decides(deciding, version)
    request = ask()
    request.context["hour"].number_value = 10 * TRIGGER
    answered = (await deciding.decision.Decide(request, timeout=60.0)).decisions[0]
    assert answered.reason == events_pb.REASON_POPULAR
    await decides(deciding, before)
    other = await start()
    await other.with_columns()
    await decides(other, before)
    assert "did not come back" in (await listed(other))[version].stopped_why
    assert Alarm.MODEL_STOPPED in alarms.standing()
    activate = pb.ActivateModelRequest(name="ranker", sha256=before.partition("@")[2])
    await deciding.release.ActivateModel(activate, timeout=REGISTER_TIMEOUT_S)
    assert Alarm.MODEL_STOPPED not in alarms.standing()


async def test_activating_what_may_not_decide_is_refused(deciding: Deciding) -> None:
    """Whoever activates it is told why, and what decides goes on."""
    before = await deciding.learn()
    version = await stored(deciding, endless(WIDTH))
    request = pb.ActivateModelRequest(name="ranker", sha256=version.partition("@")[2])
    error = await refusal(deciding.release.ActivateModel(request, timeout=REGISTER_TIMEOUT_S))
    assert (error.reason, "graph inside a node" in error.message) == ("MODEL_REFUSED", True)
    await decides(deciding, before)
