"""Decision over real Postgres, JetStream and gRPC, in this process; identity, consent and features stand in."""

import asyncio
import base64
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from comity.common.v1.holdings_pb2_grpc import HoldingsServiceStub
from comity.common.v1.types_pb2 import SUBJECT_LEVEL_KNOWN, Identity, LogPosition, Member, SubjectRef
from comity.consent.v1 import consent_service_pb2 as consent_pb2
from comity.consent.v1 import consent_service_pb2_grpc as consent_grpc
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1 import decision_service_pb2_grpc as pb_grpc
from comity.decision.v1 import site_pb2
from comity.features.v1 import feature_set_pb2 as features_pb2
from comity.features.v1 import features_service_pb2 as features_service
from comity.features.v1 import features_service_pb2_grpc as features_grpc
from comity.identity.v1 import identity_service_pb2 as identity_pb2
from comity.identity.v1 import identity_service_pb2_grpc as identity_grpc

from services.chassis.errors import Kind, ServiceError
from services.chassis.lifecycle import App
from services.chassis.memory import MemoryKeys
from services.chassis.rpc_client import connect
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from services.chassis.signing import signing_key
from services.chassis.telemetry import Telemetry
from services.decision.domain.release import signed_text
from services.decision.main import Settings, build
from tests.unit.decision.onnx_models import linear
from tests.waiting import until_served

BUDGET_MS = 20_000
TIMEOUT_S = 10.0
PROFILE = "profile_personalization"
CHUNK_BYTES = 1000
MODEL_KEY = signing_key("models", b"model key of this test, of the test alone")
# A busy machine takes seconds to start the process that a model is tried in.
REGISTER_TIMEOUT_S = 60.0
_numbers = itertools.count(1)

FEATURE_SET = features_pb2.FeatureSet(
    version="features-1",
    subject_width=2,
    item_width=2,
    columns=[
        features_pb2.ModelColumn(name="clicks", feature="clicks", item=features_pb2.ItemColumn(offset=0)),
        features_pb2.ModelColumn(
            name="visits", feature="visits", purposes=[PROFILE], subject=features_pb2.SubjectColumn(offset=0)
        ),
        features_pb2.ModelColumn(
            name="affinity",
            feature="affinity",
            purposes=[PROFILE],
            dot=features_pb2.DotColumn(subject_offset=1, item_offset=1, width=1),
        ),
        features_pb2.ModelColumn(
            name="hour", feature="hour", context=features_pb2.ContextColumn(key="hour", default_value=12)
        ),
    ],
)


def member(name: str) -> str:
    """The pseudonym of a user id."""
    return base64.b32encode(hashlib.sha256(name.encode()).digest()[:16]).decode().rstrip("=").lower()


def items(count: int = 8) -> list[site_pb2.Item]:
    """Items that differ in price."""
    return [
        site_pb2.Item(id=f"item-{k}", title=f"Item {k}", numbers={"price": float(k)}, variants=["photo"])
        for k in range(count)
    ]


def site(**changes: Any) -> site_pb2.Site:
    """A placement that a model ranks; changes are the policy's."""
    policy: dict[str, Any] = {
        "id": "hero",
        "description": "as in the test",
        "eligibility": "item.attributes.price < 6.0",
        "ranker": site_pb2.Ranker(model="ranker"),
        "epsilon": 0.2,
        "popular_by": "clicks",
    }
    placement = site_pb2.Placement(
        id="home_hero",
        description="as in the test",
        slate_size=3,
        default_slate=[site_pb2.DefaultEntry(item_id="spring-sale")],
        purposes=[PROFILE],
        policy_id="hero",
    )
    return site_pb2.Site(
        name="shop",
        placements=[placement],
        policies=[site_pb2.Policy(**{**policy, **changes})],
        feature_set_version=FEATURE_SET.version,
    )


async def not_asked(request: Any, context: Any) -> Any:
    """A method that decision does not call."""
    raise AssertionError("decision does not ask this")


class StandIns(
    identity_grpc.IdentityServiceServicer,
    identity_grpc.KeyServiceServicer,
    consent_grpc.ConsentServiceServicer,
    features_grpc.FeatureServiceServicer,
):
    """Identity, consent and features: everybody is known, allows everything that is not in `refused`."""

    Link = Unlink = DescribeSubject = PublishPlaceholders = staticmethod(not_asked)
    Record = Revoke = History = PublishPurposes = staticmethod(not_asked)
    PublishFeatureSet = AwaitPosition = staticmethod(not_asked)

    def __init__(self) -> None:
        self.keys = MemoryKeys()
        self.refused: set[str] = set()
        self.down: set[str] = set()
        self.columns = 1
        self.item_ids = [item.id for item in items()]
        self.batches: list[int] = []
        # Feature sets that features has published, by version.
        self.published = {FEATURE_SET.version: FEATURE_SET}
        # How long consent says that Revoke waits.
        self.waits_ms = BUDGET_MS

    async def Resolve(self, request: identity_pb2.ResolveRequest, context: Any) -> identity_pb2.ResolveResponse:  # noqa: N802
        self._up("identity")
        response = identity_pb2.ResolveResponse()
        for query in request.queries:
            values = {identity.value for identity in query.identities if identity.namespace == "user_id"}
            if len(values) > 1:
                response.subjects.add(error="two different user ids")
                continue
            name = query.subject_id or member(query.identities[0].value)
            response.subjects.add(
                subject_id=name,
                member_id=name,
                level=SUBJECT_LEVEL_KNOWN,
                holdout_bucket=9_999,
                members=[Member(subject_id=name)],
            )
        return response

    async def GetDataKeys(  # noqa: N802
        self, request: identity_pb2.GetDataKeysRequest, context: Any
    ) -> identity_pb2.GetDataKeysResponse:
        self._up("keys")
        keys = await self.keys.keys(request.member_ids, mint=request.mint)
        return identity_pb2.GetDataKeysResponse(
            keys=[
                identity_pb2.DataKey(
                    member_id=one, key_id=keys[one].key_id, key=keys[one].key, destroyed=keys[one].destroyed
                )
                for one in request.member_ids
            ]
        )

    async def Evaluate(self, request: consent_pb2.EvaluateRequest, context: Any) -> consent_pb2.EvaluateResponse:  # noqa: N802
        self._up("consent")
        self.batches.append(len(request.queries))
        response = consent_pb2.EvaluateResponse(policy_version="consent-1", decide_budget_ms=self.waits_ms)
        for query in request.queries:
            evaluation = response.evaluations.add(consent_version=3)
            for purpose in query.purposes:
                refused = query.signals.gpc == "1" or any(one.subject_id in self.refused for one in query.members)
                evaluation.verdicts.add(purpose=purpose, allowed=not refused)
        return response

    async def DescribeConsent(  # noqa: N802
        self, request: consent_pb2.DescribeConsentRequest, context: Any
    ) -> consent_pb2.DescribeConsentResponse:
        self._up("consent")
        return consent_pb2.DescribeConsentResponse(decide_budget_ms=self.waits_ms)

    async def DescribeFeatureSet(  # noqa: N802
        self, request: features_service.DescribeFeatureSetRequest, context: Any
    ) -> features_service.DescribeFeatureSetResponse:
        self._up("features")
        if request.version not in self.published:
            raise ServiceError(Kind.FAILED_PRECONDITION, "FEATURE_SET_UNKNOWN", "no such feature set")
        return features_service.DescribeFeatureSetResponse(feature_set=self.published[request.version])

    async def GetFeatures(  # noqa: N802
        self, request: features_service.GetFeaturesRequest, context: Any
    ) -> features_service.GetFeaturesResponse:
        self._up("features")
        response = features_service.GetFeaturesResponse()
        for query in request.queries:
            value = query.as_of.seconds % 1000
            vector = np.array([value, 1.0], dtype="<f4").tobytes()
            response.subjects.add(subject_id=query.subject_id, vector=vector, states=b"\1\1")
        return response

    async def GetItemColumns(  # noqa: N802
        self, request: features_service.GetItemColumnsRequest, context: Any
    ) -> AsyncIterator[features_service.GetItemColumnsResponse]:
        self._up("features")
        version = f"columns-{self.columns}"
        if request.held_version == version:
            return
        position = LogPosition(epoch=1, xid=self.columns, position=self.columns)
        for k, item_id in enumerate(self.item_ids):
            yield features_service.GetItemColumnsResponse(
                columns_version=version,
                position=position,
                catalog_position=LogPosition(epoch=9, xid=9, position=9),
                item_ids=[item_id],
                rows=np.array([k * self.columns, -k], dtype="<f4").tobytes(),
                last=k == len(self.item_ids) - 1,
            )

    def _up(self, name: str) -> None:
        if name in self.down:
            raise ServiceError(Kind.UNAVAILABLE, "DOWN", "as in the test")


@dataclass
class Deciding:
    """A running decision service and what stands around it."""

    url: str
    around: StandIns
    decision: pb_grpc.DecisionServiceStub
    catalog: pb_grpc.CatalogServiceStub
    release: pb_grpc.ReleaseServiceStub
    holdings: HoldingsServiceStub

    async def decide(self, *, who: str = "ann", request_id: str = "", **placement: Any) -> pb.PlacementDecision:
        """One decision for the site's placement."""
        request = ask(who=who, request_id=request_id, **placement)
        return (await self.decision.Decide(request, timeout=TIMEOUT_S)).decisions[0]

    async def apply(self, declared: site_pb2.Site, *, validate_only: bool = False) -> pb.ApplySiteResponse:
        """Apply the site."""
        request = pb.ApplySiteRequest(site=declared, feature_set=FEATURE_SET, validate_only=validate_only)
        return await self.catalog.ApplySite(request, timeout=TIMEOUT_S)

    async def register(self, model: onnx.ModelProto, **header: Any) -> pb.RegisterModelResponse:
        """Send the model in chunks."""
        sent = iter(parts(model.SerializeToString(), **header))
        return await self.release.RegisterModel(sent, timeout=REGISTER_TIMEOUT_S)

    async def learn(self, model: onnx.ModelProto | None = None) -> str:
        """Register and activate a model; its version."""
        model = model or linear(len(FEATURE_SET.columns))
        registered = await self.register(model)
        name, _, sha256 = registered.model_version.partition("@")
        await self.release.ActivateModel(pb.ActivateModelRequest(name=name, sha256=sha256), timeout=TIMEOUT_S)
        return registered.model_version

    async def with_columns(self) -> None:
        """Returns when the service holds the newest item columns."""
        position = LogPosition(epoch=1, xid=self.around.columns, position=self.around.columns)
        await self.catalog.AwaitItemColumns(pb.AwaitItemColumnsRequest(behavior_position=position), timeout=TIMEOUT_S)


def ask(*, who: str = "ann", request_id: str = "", **placement: Any) -> pb.DecideRequest:
    """A request for the site's placement."""
    return pb.DecideRequest(
        request_id=request_id or f"request-{next(_numbers)}",
        identities=[Identity(namespace="user_id", value=who)],
        placements=[pb.PlacementRequest(**{"placement_id": "home_hero", **placement})],
    )


def past(external_id: str, *, who: str = "ann", **changes: Any) -> pb.RecordedDecision:
    """A slate that another system showed."""
    recorded: dict[str, Any] = {
        "external_id": external_id,
        "subject": SubjectRef(identities=[Identity(namespace="user_id", value=who)]),
        "placement_id": "home_hero",
        "item_ids": ["item-7", "item-1", "gone"],
        "decided_at": {"seconds": 1_700_000_123},
    }
    return pb.RecordedDecision(**{**recorded, **changes})


def parts(data: bytes, **header: Any) -> Sequence[pb.RegisterModelRequest]:
    """The messages of a registration."""
    announced: dict[str, Any] = {
        "name": "ranker",
        "sha256": hashlib.sha256(data).hexdigest(),
        "feature_set_version": FEATURE_SET.version,
        "columns": [column.name for column in FEATURE_SET.columns],
        "metrics": {"ndcg": 0.5},
    }
    announced |= header
    announced.setdefault("signature", MODEL_KEY.sign(signed_text(f"{announced['name']}@{announced['sha256']}")))
    chunks = [data[k : k + CHUNK_BYTES] for k in range(0, len(data), CHUNK_BYTES)]
    first = pb.RegisterModelRequest(header=pb.ModelHeader(**announced))
    return [first, *(pb.RegisterModelRequest(chunk=chunk) for chunk in chunks)]


@asynccontextmanager
async def standing_in(around: StandIns) -> AsyncIterator[str]:
    """Where the stand-ins answer."""
    server = RpcServer(ServiceSettings(database_url="", nats_url="", drain_s=0.0))  # type: ignore[arg-type]
    server.add(identity_grpc.add_IdentityServiceServicer_to_server, around)
    server.add(identity_grpc.add_KeyServiceServicer_to_server, around)
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, around)
    server.add(features_grpc.add_FeatureServiceServicer_to_server, around)
    yield f"127.0.0.1:{await server.start()}"
    await server.stop()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """The service; its address."""
    app = App("decision", RpcServer(settings), Telemetry("decision", None, ratio=0.0))
    stop = asyncio.Event()
    try:
        await build(settings, app)
        async with asyncio.TaskGroup() as group:
            group.create_task(app.serve_until(stop))
            yield await until_served(app.server)
            stop.set()
    finally:
        await app.close()


Start = Callable[[], Awaitable[Deciding]]


@pytest.fixture
async def start(database: Callable[[str], Awaitable[str]], nats_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """`await start()`: a replica of decision; all of one test share a database and the stand-ins."""
    around, url = StandIns(), await database("decision")
    for name in ("seed", "token"):
        (tmp_path / name).write_bytes(name.encode() * 8)
    (tmp_path / "model").write_text(MODEL_KEY.public_key().public_bytes_raw().hex())
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(standing_in(around))
        settings = Settings(
            database_url=url,  # type: ignore[arg-type]
            nats_url=nats_url,
            identity_address=address,
            consent_address=address,
            features_address=address,
            seed_key_file=tmp_path / "seed",
            token_key_file=tmp_path / "token",
            model_public_key_file=tmp_path / "model",
            drain_s=0.0,
            stop_grace_s=1.0,
            # A loaded test machine is no reason to fall back; longer than any site may allow, so not validated.
        ).model_copy(update={"budget_ms_max": BUDGET_MS})

        async def begin() -> Deciding:
            channel = connect(await stack.enter_async_context(running(settings)))
            stack.push_async_callback(channel.close)
            return Deciding(
                url,
                around,
                pb_grpc.DecisionServiceStub(channel),
                pb_grpc.CatalogServiceStub(channel),
                pb_grpc.ReleaseServiceStub(channel),
                HoldingsServiceStub(channel),
            )

        yield begin


@pytest.fixture
async def deciding(start: Start) -> Deciding:
    """One replica with a site, items and item columns, and no model yet."""
    running_service = await start()
    await running_service.catalog.UpsertItems(pb.UpsertItemsRequest(items=items()), timeout=TIMEOUT_S)
    await running_service.apply(site())
    await running_service.with_columns()
    return running_service
