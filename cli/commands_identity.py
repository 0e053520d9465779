"""`comity identity resolve | link | unlink | describe`: who somebody is."""

import uuid
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from comity.common.v1 import types_pb2 as types_pb
from comity.identity.v1 import identity_service_pb2 as pb
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

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
    ReadAs,
    Reason,
    TcString,
    Usp,
    access,
    signals,
)
from cli.output import console, print_json, styled
from cli.parsing import AnyIdentities, Identities, SubjectId, parse_identities, parse_subject
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call
from services.chassis.words import enum_word

TIMEOUT_S = 10.0
# Typer wants a default of its own for options that repeat.
NOBODY: list[str] = []

RequestId: TypeAlias = Annotated[
    str, typer.Option("--request-id", help="The same id links nothing twice; one is drawn when not given.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    identity = typer.Typer(help="Say who is who, take it back, and look it up.")
    for command in (resolve, link, unlink, describe):
        identity.command()(command)
    app.add_typer(identity, name="identity")


def resolve(
    identity: Identities,
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Who the identities name; that it was looked up is recorded, and nothing else written."""
    query = pb.ResolveQuery(identities=_identities(identity))
    request = pb.ResolveRequest(queries=[query], access=access(read_as, reason))
    answer = _ask("Resolve", request, data_dir, address, as_json=as_json)
    (subject,) = answer.subjects
    if subject.error:
        kind = Kind.FAILED_PRECONDITION if subject.error_reason != "IDENTITIES_INVALID" else Kind.INVALID
        fail(ServiceError(kind, subject.error_reason, subject.error), as_json=as_json)
    _show(answer, list(answer.subjects), as_json=as_json)


def link(
    identity: Identities,
    gpc: Gpc = False,
    tc_string: TcString = "",
    gpp: Gpp = "",
    usp: Usp = "",
    jurisdiction: Jurisdiction = "",
    do_not_personalize: DoNotPersonalize = False,
    request_id: RequestId = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """State that the identities are one person's; needs identity_linking, and what gated identities need.

    A link stands until unlink takes it back, also when identity_linking is revoked, which keeps others from being made.
    """
    said = signals(
        gpc=gpc,
        tc_string=tc_string,
        gpp=gpp,
        usp=usp,
        jurisdiction=jurisdiction,
        do_not_personalize=do_not_personalize,
    )
    request = pb.LinkRequest(
        request_id=request_id or uuid.uuid4().hex, identities=_identities(identity), consent_signals=said
    )
    answer = _ask("Link", request, data_dir, address, as_json=as_json)
    left = f", {len(answer.gave_way_member_ids)} of the oldest gave way" if answer.gave_way_member_ids else ""
    told = f"link {answer.link_id}{' merged' if answer.merged else ''}{left}"
    _show(answer, [answer.subject], told, as_json=as_json)


def unlink(
    link_id: Annotated[str, typer.Argument(metavar="LINK", help="As link or describe named it.")],
    request_id: RequestId = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Take a link back: everybody is who they would be without it."""
    request = pb.UnlinkRequest(request_id=request_id or uuid.uuid4().hex, link_id=link_id)
    answer = _ask("Unlink", request, data_dir, address, as_json=as_json)
    _show(answer, list(answer.subjects), as_json=as_json)


def describe(
    identity: AnyIdentities = NOBODY,
    subject: SubjectId = "",
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Who somebody is, and by which links; that it was looked up is recorded."""
    request = pb.DescribeSubjectRequest(subject=parse_subject(identity, subject), access=access(read_as, reason))
    answer = _ask("DescribeSubject", request, data_dir, address, as_json=as_json)
    told = [f"link {one.link_id}: {', '.join(one.namespaces)}" for one in answer.links]
    _show(answer, [answer.subject], *told, as_json=as_json)


def _ask(method: str, request: Message, data_dir: Path, address: list[str], *, as_json: bool) -> Any:
    async def ask() -> Any:
        async with Services(resolve_addresses(data_dir, address)) as services:
            return await call(getattr(services.identity, method), request, TIMEOUT_S)

    return run(ask(), as_json=as_json)


def _identities(texts: list[str]) -> list[types_pb.Identity]:
    return [types_pb.Identity(namespace=name, value=value) for name, value in parse_identities(texts).items()]


def _show(answer: Message, subjects: list[pb.ResolvedSubject], *told: str, as_json: bool) -> None:
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    for one in subjects:
        level = enum_word(types_pb.SubjectLevel.DESCRIPTOR, one.level) or "by pseudonym"
        needs = f", needs {', '.join(one.required_purposes)}" if one.required_purposes else ""
        who = (one.subject_id, level, one.holdout_bucket, len(one.members), needs)
        console.print(styled("[bold]{}[/] {}, bucket {}, {} members{}", *who))
    for line in told:
        console.print(line)
