"""`comity decide` and `comity track`: one call from the shell."""

import base64
import binascii
import uuid
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_events_pb2 as feedback_events_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from cli.connections import NO_ADDRESSES, Address, Services, resolve_addresses
from cli.failures import fail, run
from cli.options import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    DoNotPersonalize,
    Gpc,
    Gpp,
    Jurisdiction,
    TcString,
    Usp,
    signals,
)
from cli.output import console, print_json, styled
from cli.parsing import Fact, Identities, parse_facts, parse_identities
from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.rpc_client import call
from services.chassis.words import enum_word

TRACK_TIMEOUT_S = 10.0
NOTHING: list[str] = []


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(decide)
    app.command()(track)


def decide(
    placements: Annotated[list[str], typer.Argument(metavar="PLACEMENT...", help="As placements.yaml names them.")],
    identity: Identities,
    context: Annotated[
        list[str], typer.Option("--context", metavar="KEY=VALUE", help="Facts of the request, e.g. hour=20.")
    ] = NOTHING,
    candidate: Annotated[
        list[str], typer.Option("--candidate", metavar="ITEM", help="Choose among these only; may be repeated.")
    ] = NOTHING,
    exclude: Annotated[
        list[str], typer.Option("--exclude", metavar="ITEM", help="Do not show; may be repeated.")
    ] = NOTHING,
    slate_size: Annotated[int, typer.Option(min=0, max=100, help="Entries wanted; 0: the placement's own.")] = 0,
    gpc: Gpc = False,
    tc_string: TcString = "",
    gpp: Gpp = "",
    usp: Usp = "",
    jurisdiction: Jurisdiction = "",
    do_not_personalize: DoNotPersonalize = False,
    deferred: Annotated[bool, typer.Option("--deferred", help="Seen only when an exposure is tracked.")] = False,
    template_version: Annotated[
        str, typer.Option(metavar="VERSION", help="Of the page or template that asks; kept with the decision.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be answered and record nothing: it is no exposure.")
    ] = False,
    request_id: Annotated[str, typer.Option(help="The same id gives the same decisions.")] = "",
    deadline_ms: Annotated[int, typer.Option(min=1, help="Deadline of the call.")] = 250,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Ask what to show a person; within the deadline there is an answer, and it says why it is what it is."""
    request = decision_pb.DecideRequest(
        request_id=request_id or uuid.uuid4().hex,
        identities=_identities(identity),
        placements=[
            decision_pb.PlacementRequest(
                placement_id=name, candidate_ids=candidate, excluded_item_ids=exclude, slate_size=slate_size
            )
            for name in placements
        ],
        context={key: _context_fact(value) for key, value in parse_facts(context, "--context").items()},
        consent_signals=signals(
            gpc=gpc,
            tc_string=tc_string,
            gpp=gpp,
            usp=usp,
            jurisdiction=jurisdiction,
            do_not_personalize=do_not_personalize,
        ),
        activation=events_pb.ACTIVATION_DEFERRED if deferred else events_pb.ACTIVATION_IMMEDIATE,
        template_version=template_version,
    )
    answer = run(_decide(request, deadline_ms / 1000, data_dir, address, dry_run=dry_run), as_json=as_json)
    if as_json:
        told = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print_json(told | {"dry_run": dry_run})
        return
    for decision in answer.decisions:
        _show_decision(decision)
    recorded = "; a dry run: nothing was recorded" if dry_run else ""
    console.print(styled("[dim]spent {} of {} ms{}[/]", answer.spent_ms, answer.budget_ms, recorded))


def track(
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="As events/*.yaml names it, e.g. click.")],
    identity: Identities,
    item: Annotated[
        list[str], typer.Option("--item", metavar="ITEM", help="What it happened to; may be repeated.")
    ] = NOTHING,
    prop: Annotated[
        list[str], typer.Option("--property", metavar="KEY=VALUE", help="As the event's schema declares it.")
    ] = NOTHING,
    decision_id: Annotated[str, typer.Option("--decision", metavar="DECISION_ID", help="What it answers.")] = "",
    token: Annotated[str, typer.Option("--exposure-token", metavar="BASE64", help="From the decision's JSON.")] = "",
    event_id: Annotated[str, typer.Option(help="The same id counts once.")] = "",
    occurred_at: Annotated[datetime | None, typer.Option(help="When it happened, UTC; now if not given.")] = None,
    gpc: Gpc = False,
    tc_string: TcString = "",
    gpp: Gpp = "",
    usp: Usp = "",
    jurisdiction: Jurisdiction = "",
    do_not_personalize: DoNotPersonalize = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Say that something happened, and see whether it was taken."""
    event = feedback_pb.TrackedEvent(
        event_id=event_id or uuid.uuid4().hex,
        type=event_type,
        subject=types_pb.SubjectRef(identities=_identities(identity)),
        item_ids=item,
        properties={key: property_value(value) for key, value in parse_facts(prop, "--property").items()},
        decision_id=decision_id,
        exposure_token=_token(token),
        consent_signals=signals(
            gpc=gpc,
            tc_string=tc_string,
            gpp=gpp,
            usp=usp,
            jurisdiction=jurisdiction,
            do_not_personalize=do_not_personalize,
        ),
    )
    if occurred_at is not None:
        event.occurred_at.FromDatetime(occurred_at)
    answer = run(_track(event, data_dir, address), as_json=as_json)
    result = answer.results[0]
    if result.status == feedback_pb.TRACK_STATUS_REFUSED:
        problem = FieldProblem(result.field, result.problem)
        message = f"{result.field}: {result.problem}"
        fail(ServiceError(Kind.INVALID, "EVENT_REFUSED", message, problems=(problem,)), as_json=as_json)
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True))
    else:
        word = enum_word(feedback_pb.TrackStatus.DESCRIPTOR, result.status).lower().replace("_", " ")
        console.print(f"{event_type} {result.event_id}: {word}")


async def _decide(
    request: decision_pb.DecideRequest, deadline_s: float, data_dir: Path, address: list[str], *, dry_run: bool
) -> decision_pb.DecideResponse:
    async with Services(resolve_addresses(data_dir, address)) as services:
        await services.warm("decision")
        if dry_run:
            asked = decision_pb.PreviewRequest(request=request)
            preview: decision_pb.PreviewResponse = await call(services.decision.Preview, asked, deadline_s)
            return preview.answer
        answer: decision_pb.DecideResponse = await call(services.decision.Decide, request, deadline_s)
        return answer


async def _track(event: feedback_pb.TrackedEvent, data_dir: Path, address: list[str]) -> feedback_pb.TrackResponse:
    async with Services(resolve_addresses(data_dir, address)) as services:
        request = feedback_pb.TrackRequest(events=[event])
        answer: feedback_pb.TrackResponse = await call(services.feedback.Track, request, TRACK_TIMEOUT_S)
        return answer


def _show_decision(decision: decision_pb.PlacementDecision) -> None:
    which = decision.WhichOneof("answer")
    entries = decision.slate.entries if which == "slate" else decision.fallback.entries
    why = reason_name(decision.reason)
    if decision.fallback_reason:
        why += f", {fallback_name(decision.fallback_reason)}"
    layer = enum_word(types_pb.SubjectLevel.DESCRIPTOR, decision.layer)
    used = f"; {layer} layer" if layer else ""
    told = (decision.placement_id, decision.decision_id, which, why, used)
    console.print(styled("[bold]{}[/] {}  {}: {}{}", *told))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("slot", "item", "variant", "score", "propensity", "reason"):
        table.add_column(column, justify="right" if column in ("slot", "score", "propensity") else "left")
    for entry in entries:
        numbers = f"{entry.score:.4f}", f"{entry.propensity:.4f}"
        table.add_row(str(entry.slot), entry.item_id, entry.variant_id, *numbers, reason_name(entry.reason))
    console.print(table)
    versions = ", ".join(f"{field.name} {value}" for field, value in decision.versions.ListFields())
    console.print(styled("[dim]{}{}[/]\n", versions, "" if decision.learnable else "; not learnable"))


def reason_name(reason: int) -> str:
    """RANKED for REASON_RANKED; empty for none."""
    return enum_word(events_pb.Reason.DESCRIPTOR, reason)


def fallback_name(reason: int) -> str:
    """NO_CONSENT for FALLBACK_REASON_NO_CONSENT; empty for none."""
    return enum_word(events_pb.FallbackReason.DESCRIPTOR, reason)


def _identities(texts: list[str]) -> list[types_pb.Identity]:
    return [types_pb.Identity(namespace=name, value=value) for name, value in parse_identities(texts).items()]


def _token(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise typer.BadParameter(
            "is not base64; take it from `comity decide --json`", param_hint="--exposure-token"
        ) from error


def _context_fact(value: Fact) -> events_pb.ContextFact:
    return events_pb.ContextFact(**_oneof(value))


def property_value(value: Fact) -> feedback_events_pb.PropertyValue:
    """The value as an event holds it."""
    return feedback_events_pb.PropertyValue(**_oneof(value))


def _oneof(value: Fact) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolean_value": value}
    return {"string_value": value} if isinstance(value, str) else {"number_value": value}
