"""G14, G20: no model file that somebody sends or that is stored harms decision, and each is refused with its reason.

Files of every kind that is known (bench.prove.hostile_files) are sent to a running stack, wrongly signed ones among
them, and uploads that never end; then some are put into the database as the models that decide, and decision is started
again; then one decides that no trial could have seen through. Meanwhile people are decided for and health is asked:
both must be answered all the time, by the model that was there before.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
from comity.common.v1 import operations_pb2 as operations_pb
from comity.decision.v1 import decision_service_pb2 as pb
from comity.features.v1 import features_service_pb2 as features_pb

from bench.prove.hostile_files import HOSTILE, TRIGGER, endless, sound
from bench.prove.proof import Proof
from bench.ranker import activate_noise
from bench.site import MODEL
from bench.world import Requests, World, world
from cli.connections import Services
from cli.stack import Stack
from cli.stack.probe import is_serving
from services.chassis.errors import ServiceError
from services.chassis.rpc_client import call

TIMEOUT_S = 30.0
# A trial takes seconds, and more on a machine that does something else.
REGISTER_TIMEOUT_S = 180.0
DECIDE_TIMEOUT_S = 10.0
# Longer than any pause of a busy machine: what does not answer health for so long is held up.
HEALTH_TIMEOUT_S = 10.0
EVERY_S = 0.2
BACK_WITHIN_S = 90.0
CHUNK_BYTES = 128 * 1024
UPLOADS_COUNT = 8
UPLOAD_BYTES = 30 * 2**20
# Two copies of the largest file at once, and what a service grows by anyway.
GROWTH_BYTES_MAX = 128 * 2**20
TREES_COUNT = 50
PEOPLE_COUNT = 20
# Stored as models that decide: what ends a process, what never ends, what nobody can read.
KEPT = ("loop", "deep_tree", "no_model", "slow", "empty_nodes", "wide_gather")
FORGED_EVENT = "forged by a model"

MODEL_SQL = """
INSERT INTO models (name, sha256, feature_set_version, columns_count, metrics, onnx, registered_unsigned)
VALUES ($1, $2, $3, $4, '{}', $5, true) ON CONFLICT DO NOTHING
"""
CHOOSE_SQL = """
INSERT INTO active_models (name, sha256) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256, activated_at = now()
"""
# As though every trial of this file had found nothing.
VERDICT_SQL = """
INSERT INTO model_verdicts (sha256, columns_count, checker, problem)
SELECT DISTINCT $1, columns_count, checker, '' FROM model_verdicts ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What models of the site read."""

    feature_set: str
    columns: Sequence[str]

    @property
    def hour(self) -> int:
        """The column that a caller can set."""
        return self.columns.index("hour")


@dataclass(slots=True)
class Witness:
    """Somebody who is decided for all the time, and asks whether decision is well.

    Args:
        unanswered, unhealthy: decides and health checks that had no answer in time.
        models: that ranked.
    """

    decides: int = 0
    unanswered: int = 0
    unhealthy: int = 0
    health_s_max: float = 0.0
    models: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Found:
    """What went wrong, by what it is.

    Args:
        accepted: files that were not refused, or not for their reason.
    """

    tried: int = 0
    accepted: list[str] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """All of it."""
        return len(self.accepted) + sum(self.wrong.values())


async def prove(folder: Path, *, names: Sequence[str]) -> Proof:
    """The promise over these files; a decision without each protection must be caught."""
    async with _ready(folder) as ready:
        found, witness = await _harm(ready, names)
        teeth = await _bite(ready)
    return Proof(
        trials=found.tried,
        failures=found.failures,
        teeth=teeth,
        facts={
            "files": len(names),
            "accepted": len(found.accepted),
            "decides": witness.decides,
            "health_s_max": round(witness.health_s_max, 3),
            **found.wrong,
        },
    )


async def _harm(ready: World, names: Sequence[str]) -> tuple[Found, Witness]:
    stack, services = ready.stack, ready.services
    site, found, witness = await site_of(services), Found(), Witness()
    before = await _ranking(ready)
    async with _witnessed(ready, witness):
        held_bytes = _held_bytes(stack)
        found.accepted += await sent(services, site, names)
        found.accepted += await sent_unsigned(services, site)
        found.tried += len(names) + len(UNSIGNED)
        found.wrong["uploads_at_once"] = await _uploads_at_once(services, site)
        found.wrong["grown"] = int(_held_bytes(stack) - held_bytes > GROWTH_BYTES_MAX)
        found.wrong["forged_lines"] = forged_lines(stack)
    found.tried += len(KEPT)
    for name in KEPT:
        await _store(stack, site, f"other_{name}", HOSTILE[name][0](len(site.columns)))
    await _store(stack, site, MODEL, HOSTILE["loop"][0](len(site.columns)))
    await stack.restart("decision")
    # The connection to the process before fails once more, or for a while: no fault of this one.
    found.wrong["no_answer_after_start"] = int(not await _is_back(ready))
    async with _witnessed(ready, witness):
        found.wrong["not_back_after_start"] = int(not await _is_back(ready, before))
        found.wrong["no_alarm"] = int("model_stopped" not in await _alarms(services))
        onnx = endless(len(site.columns), column=site.hour)
        version = await _store(stack, site, MODEL, onnx, passed=True)
        found.tried += 1
        found.wrong["hang_not_met"] = int(not await _is_back(ready, version))
        await _decide(ready, hour=10 * TRIGGER)
        found.wrong["not_back_after_hang"] = int(not await _is_back(ready, before))
    found.wrong["unanswered"], found.wrong["unhealthy"] = witness.unanswered, witness.unhealthy
    found.wrong["other_models"] = len(witness.models - {before, version})
    return found, witness


async def _bite(ready: World) -> dict[str, int]:
    """How often each wrong variant is caught."""
    stack, services = ready.stack, ready.services
    site, caught = await site_of(services), {}
    await _become(ready, "unlisted")
    caught["without_operator_list"] = len(await sent(services, site, ("loop", "random")))
    await _become(ready, "untried")
    caught["without_child_trial"] = len(await sent(services, site, ("infinite", "fails_for_most_counts")))
    await _become(ready, "unsigned")
    caught["without_signature"] = len(await sent_unsigned(services, site))
    await _become(ready, "unwatched")
    onnx = endless(len(site.columns), column=site.hour)
    # Another file than before, which was taken off for good.
    onnx += b"\x32\x01x"
    version = await _store(stack, site, MODEL, onnx, passed=True)
    assert await _is_back(ready, version), "it is chosen"
    await _decide(ready, hour=10 * TRIGGER)
    caught["without_watch"] = int(not await is_serving(stack.address("decision"), timeout_s=HEALTH_TIMEOUT_S))
    await stack.kill("decision")
    return caught


async def _become(ready: World, variant: str) -> None:
    """Start decision as this variant; one that answered nobody would be caught by anything."""
    await ready.stack.become("decision", variant)
    await _ranking(ready)


async def site_of(services: Services) -> Site:
    """What the applied site's models read."""
    described = await call(services.features.DescribeFeatureSet, features_pb.DescribeFeatureSetRequest(), TIMEOUT_S)
    feature_set = described.feature_set
    return Site(feature_set.version, [column.name for column in feature_set.columns])


async def sent(services: Services, site: Site, names: Iterable[str]) -> list[str]:
    """Register each of these files; those that were not refused, or not for their reason."""
    wrong = []
    for name in names:
        made, said = HOSTILE[name]
        error = await _registered(services, site, made(len(site.columns)))
        if error is None or error.reason != "MODEL_REFUSED" or not re.search(said, error.message):
            wrong.append(name)
    return wrong


# By name; None: the site's own, of the same file under another name.
UNSIGNED: Mapping[str, bytes | None] = {"no_signature": b"", "no_key": b"s" * 64, "another_name": None}


async def sent_unsigned(services: Services, site: Site) -> list[str]:
    """Register a sound model with each wrong signature; those that were not refused for it."""
    wrong = []
    for name, signature in UNSIGNED.items():
        onnx = sound(len(site.columns), weight=3.0)
        if signature is None:
            signature = services.sign(f"other@{hashlib.sha256(onnx).hexdigest()}")
        error = await _registered(services, site, onnx, signature=signature)
        if error is None or "signed" not in error.message:
            wrong.append(name)
    return wrong


async def _registered(
    services: Services, site: Site, onnx: bytes, *, signature: bytes | None = None
) -> ServiceError | None:
    """Why the file was refused; None: it was not."""
    messages = _messages(services, site, onnx, signature)
    try:
        await call(services.release.RegisterModel, messages, REGISTER_TIMEOUT_S)
    except ServiceError as error:
        return error
    return None


def _messages(
    services: Services, site: Site, onnx: bytes, signature: bytes | None = None
) -> Iterable[pb.RegisterModelRequest]:
    sha256 = hashlib.sha256(onnx).hexdigest()
    if signature is None:
        signature = services.sign(f"{MODEL}@{sha256}")
    header = pb.ModelHeader(
        name=MODEL, sha256=sha256, feature_set_version=site.feature_set, columns=site.columns, signature=signature
    )
    yield pb.RegisterModelRequest(header=header)
    for start in range(0, len(onnx), CHUNK_BYTES):
        yield pb.RegisterModelRequest(chunk=onnx[start : start + CHUNK_BYTES])


async def _uploads_at_once(services: Services, site: Site) -> int:
    """Open as many uploads of large files as once cost 250 MB, all but finished; how many but one go on."""
    onnx, done = b"\x00" * UPLOAD_BYTES, asyncio.Event()

    async def unfinished() -> AsyncIterator[pb.RegisterModelRequest]:
        *most, _ = _messages(services, site, onnx)
        for message in most:
            yield message
        await done.wait()

    async def is_let() -> bool:
        try:
            await services.release.RegisterModel(unfinished(), timeout=REGISTER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        return True

    let = await asyncio.gather(*(is_let() for _ in range(UPLOADS_COUNT)))
    done.set()
    return abs(sum(let) - 1)


def forged_lines(stack: Stack) -> int:
    """Lines of decision's log that a model wrote."""
    return (stack.data_dir.logs / "decision.log").read_text(errors="replace").count(FORGED_EVENT)


def _held_bytes(stack: Stack) -> int:
    """The most memory that decision's process has held so far, where Linux tells."""
    with suppress(OSError):
        for line in Path(f"/proc/{stack.pid('decision')}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


async def _store(stack: Stack, site: Site, name: str, onnx: bytes, *, passed: bool = False) -> str:
    """Put the file into the database as the model that decides; its version.

    Args:
        passed: its trial found nothing.
    """
    sha256 = hashlib.sha256(onnx).hexdigest()
    connection = await asyncpg.connect(stack.database_url("decision"))
    try:
        async with connection.transaction():
            await connection.execute(MODEL_SQL, name, sha256, site.feature_set, len(site.columns), onnx)
            if passed:
                await connection.execute(VERDICT_SQL, sha256)
            await connection.execute(CHOOSE_SQL, name, sha256)
    finally:
        await connection.close()
    return f"{name}@{sha256}"


async def _decide(ready: World, *, hour: float | None = None) -> pb.PlacementDecision | None:
    """One decision; None: no answer in time."""
    request = Requests(ready.people)(time.monotonic_ns() % 997)
    if hour is not None:
        request.context["hour"].number_value = hour
    with suppress(ServiceError):
        response: pb.DecideResponse = await call(ready.services.decision.Decide, request, DECIDE_TIMEOUT_S)
        return response.decisions[0]
    return None


async def _ranking(ready: World) -> str:
    """The model that ranks."""
    for _ in range(100):
        decision = await _decide(ready)
        if decision is not None and decision.versions.model:
            return decision.versions.model
        await asyncio.sleep(EVERY_S)
    raise AssertionError("nothing ranks")


async def _is_back(ready: World, version: str = "") -> bool:
    """Whether this model ranks before long; empty: whether there is any answer."""
    until = time.monotonic() + BACK_WITHIN_S
    while time.monotonic() < until:
        decision = await _decide(ready)
        if decision is not None and version in ("", decision.versions.model):
            return True
        await asyncio.sleep(EVERY_S)
    return False


async def _alarms(services: Services) -> set[str]:
    answer = await call(services.operations("decision").ListAlarms, operations_pb.ListAlarmsRequest(), TIMEOUT_S)
    return {alarm.name for alarm in answer.alarms}


@asynccontextmanager
async def _witnessed(ready: World, witness: Witness) -> AsyncIterator[None]:
    async def look() -> None:
        while True:
            began_s = time.monotonic()
            witness.unhealthy += not await is_serving(ready.stack.address("decision"), timeout_s=HEALTH_TIMEOUT_S)
            witness.health_s_max = max(witness.health_s_max, time.monotonic() - began_s)
            decision = await _decide(ready)
            witness.decides += 1
            witness.unanswered += decision is None
            if decision is not None and decision.versions.model:
                witness.models.add(decision.versions.model)
            await asyncio.sleep(EVERY_S)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        # Of nothing else may it have ended: it would have seen nothing since.
        with suppress(asyncio.CancelledError):
            await looking


@asynccontextmanager
async def _ready(folder: Path) -> AsyncIterator[World]:
    async with world(folder, people_count=PEOPLE_COUNT, disposable=True, holdout_share=0.0) as ready:
        await activate_noise(ready.services, trees_count=TREES_COUNT)
        yield ready
