"""People whose every text is a canary, on a stack that takes all of them in: who is erased, and who is looked for."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import yaml
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import privacy_service_pb2 as privacy_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_events_pb2 as behavior_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from comity.identity.v1 import identity_service_pb2_grpc as identity_grpc

from bench.ranker import activate_noise
from bench.site import HOLDOUT_SHARE, PURPOSE, write_bundle
from bench.world import Redirect, VariantStack
from cli.bundle import apply_bundle, load_bundle
from cli.connections import Services
from cli.privacy.calls import until_erased
from cli.privacy.scan import Forms, forms_of_bytes, forms_of_text
from services.chassis.rpc_client import call, connect

LINKING, MEASUREMENT, TRAINING = "identity_linking", "measurement", "model_training"
PURPOSES = (PURPOSE, LINKING, MEASUREMENT, TRAINING)
# A busy machine must not turn decisions into fallbacks. Every call is traced: spans are among what is looked through.
BUDGET_MS = "400"
ENV = {
    "decision": {"COMITY_DECISION_BUDGET_MS_MAX": BUDGET_MS},
    "consent": {"COMITY_CONSENT_DECIDE_BUDGET_MS_MAX": BUDGET_MS},
}
TIMEOUT_S = 30.0
DECIDE_TIMEOUT_S = 5.0
ERASED_WITHIN_S = 1800.0
AT_ONCE = 8
TREES_COUNT = 50
OFFICER = types_pb.Access(accessor="proof", reason="G11")
WRAPPED_SQL = "SELECT wrapped FROM data_keys WHERE member_id = ANY($1::text[]) AND wrapped IS NOT NULL"


@dataclass(slots=True)
class Subject:
    """Somebody who exists only here.

    Args:
        user, anonymous, city, note: the texts about the person, all of them canaries.
        keys: data keys, as they are and as they are wrapped, once they are known.
    """

    user: str
    anonymous: str
    city: str
    note: str
    subject_id: str = ""
    members: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    @property
    def identities(self) -> list[types_pb.Identity]:
        """How a backend names the person, the strongest first."""
        return [
            types_pb.Identity(namespace="user_id", value=self.user),
            types_pb.Identity(namespace="anonymous_id", value=self.anonymous),
        ]

    @property
    def canaries(self) -> tuple[str, ...]:
        """What must not be found."""
        return (self.user, self.anonymous, self.city, self.note)

    @property
    def forms(self) -> list[Forms]:
        """All that is looked for, in every form."""
        return [*map(forms_of_text, self.canaries), *map(forms_of_bytes, self.keys)]


@asynccontextmanager
async def erasable(
    folder: Path, *, variants: Mapping[str, str], redirect: Redirect = lambda _, given: given
) -> AsyncIterator[tuple[VariantStack, Services]]:
    """A stack with the site whose people leave canaries everywhere."""
    async with (
        VariantStack(
            folder / "data", variants=variants, replicas={}, env=ENV, redirect=redirect, disposable=True
        ) as stack,
        Services(stack.addresses, model_key=stack.data_dir.model_key) as services,
    ):
        bundle, feed = _bundle(folder / "bundle")
        await apply_bundle(load_bundle(bundle, feed=feed), services)
        await activate_noise(services, trees_count=TREES_COUNT)
        yield stack, services


def _bundle(folder: Path) -> tuple[Path, Path]:
    """The measured site, with behavior that has a property, and purposes to link, measure and learn for."""
    bundle, feed = write_bundle(folder, holdout_share=HOLDOUT_SHARE)
    purposes = yaml.safe_load((bundle / "purposes.yaml").read_text())
    purposes += [{**purposes[0], "id": name, "description": f"For {name}"} for name in PURPOSES[1:]]
    (bundle / "purposes.yaml").write_text(yaml.safe_dump(purposes))
    click = yaml.safe_load((bundle / "events" / "click.yaml").read_text())
    click["properties"] = [{"name": "note", "kind": "PROPERTY_KIND_STRING"}]
    (bundle / "events" / "click.yaml").write_text(yaml.safe_dump(click))
    return bundle, feed


def new_subject(number: int) -> Subject:
    """Somebody whose every text occurs nowhere else."""

    def canary(what: str) -> str:
        return f"{what}-{number}-{secrets.token_hex(8)}"

    return Subject(canary("user"), canary("anonymous"), canary("city"), canary("note"))


async def agree(services: Services, one: Subject) -> None:
    """The person agrees to everything, under either identity."""
    answers = [consent_pb.PurposeAnswer(purpose=name, state=consent_pb.CONSENT_STATE_GRANTED) for name in PURPOSES]
    for identity in one.identities:
        request = consent_pb.RecordRequest(
            request_id=uuid.uuid4().hex, subject=types_pb.SubjectRef(identities=[identity]), answers=answers
        )
        await call(services.consent.Record, request, TIMEOUT_S)


async def log_in(services: Services, one: Subject) -> None:
    """The person's identities are linked."""
    link = identity_pb.LinkRequest(request_id=uuid.uuid4().hex, identities=one.identities)
    await call(services.identity.Link, link, TIMEOUT_S)


async def resolve(services: Services, one: Subject) -> None:
    """Note who the person is."""
    request = identity_pb.ResolveRequest(queries=[identity_pb.ResolveQuery(identities=one.identities)])
    resolved = (await call(services.identity.Resolve, request, TIMEOUT_S)).subjects[0]
    one.subject_id = resolved.subject_id
    one.members = [member.subject_id for member in resolved.members]


def click_on(
    decision: decision_pb.PlacementDecision, one: Subject, identities: Sequence[types_pb.Identity]
) -> feedback_pb.TrackedEvent:
    """A click of the person on the first of what was shown, with a note of theirs."""
    entries = decision.slate.entries or decision.fallback.entries
    return feedback_pb.TrackedEvent(
        event_id=uuid.uuid4().hex,
        type="click",
        subject=types_pb.SubjectRef(identities=identities),
        item_ids=[entries[0].item_id if entries else "i0"],
        properties={"note": behavior_pb.PropertyValue(string_value=one.note)},
        decision_id=decision.decision_id,
        exposure_token=decision.exposure_token,
    )


async def know_keys(stack: VariantStack, one: Subject) -> None:
    """The person's keys, as services get them and as they are kept."""
    channel = connect(stack.addresses["identity"])
    connection = await asyncpg.connect(stack.database_url("identity"))
    try:
        stub: Any = identity_grpc.KeyServiceStub(channel)
        answer = await call(stub.GetDataKeys, identity_pb.GetDataKeysRequest(member_ids=one.members), TIMEOUT_S)
        one.keys = [key.key for key in answer.keys if key.key]
        one.keys += [row["wrapped"] for row in await connection.fetch(WRAPPED_SQL, one.members)]
    finally:
        await connection.close()
        await channel.close()
    assert one.keys, "somebody was decided for without a key"


async def erase(services: Services, one: Subject) -> None:
    """Returns when the person is erased everywhere."""
    request = privacy_pb.EraseRequest(
        request_id=uuid.uuid4().hex, subject=types_pb.SubjectRef(subject_id=one.subject_id), access=OFFICER
    )
    begun = await call(services.privacy.Erase, request, TIMEOUT_S)
    async with asyncio.timeout(ERASED_WITHIN_S):
        await until_erased(services, begun.erasure_id, lambda _: None)


async def each(people: Sequence[Subject], work: Callable[[Subject], Awaitable[None]]) -> None:
    """Do it for everybody, some at once."""
    waiting = iter(people)

    async def worker() -> None:
        for one in waiting:
            await work(one)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
