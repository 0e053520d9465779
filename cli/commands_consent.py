"""`comity consent grant | deny | object | revoke | history | receipt`: what one person said."""

import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import privacy_service_pb2 as privacy_pb
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from cli.connections import NO_ADDRESSES, Address, Services, resolve_addresses
from cli.failures import fail, run
from cli.options import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    DoNotPersonalize,
    Jurisdiction,
    PublicKey,
    ReadAs,
    Reason,
    RequestId,
    Verify,
    access,
)
from cli.output import console, print_json, styled
from cli.parsing import AnyIdentities, Identities, SubjectId, parse_identities, parse_subject
from services.chassis.errors import ServiceError, invalid
from services.chassis.rpc_client import call
from services.chassis.words import enum_word

# Revoke waits for the largest Decide budget before it returns.
TIMEOUT_S = 10.0

Purposes: TypeAlias = Annotated[
    list[str], typer.Option("--purpose", metavar="PURPOSE", help="As purposes.yaml names it; may be repeated.")
]
AllPurposes: TypeAlias = Annotated[
    list[str], typer.Option("--purpose", metavar="PURPOSE", help="May be repeated; without it: every purpose.")
]
Notice: TypeAlias = Annotated[str, typer.Option("--notice-version", help="Version of the notice that the person saw.")]
Language: TypeAlias = Annotated[
    str, typer.Option("--language", metavar="TAG", help="Language that the notice was shown in, e.g. en.")
]
Mechanism: TypeAlias = Annotated[str, typer.Option(help="How it was collected: banner, account_settings, import, …")]
CollectedAt: TypeAlias = Annotated[
    datetime | None, typer.Option(help="When the person answered, UTC; now if not given.")
]
ExpiresAt: TypeAlias = Annotated[
    datetime | None, typer.Option(help="When consent ends by itself, UTC; never if not given.")
]
NO_PURPOSES: list[str] = []
IDENTITY_LINKING = "identity_linking"


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    consent = typer.Typer(help="Record, take back and look up what a person agreed to.")
    for command in (grant, deny, object_to, revoke, history, receipt):
        consent.command()(command)
    app.add_typer(consent, name="consent")


def _answering(name: str, state: consent_pb.ConsentState.ValueType, word: str, help_text: str) -> Callable[..., None]:
    """The command that records one answer to the purposes."""

    def command(
        identity: Identities,
        purpose: Purposes = NO_PURPOSES,
        notice_version: Notice = "",
        notice_language: Language = "",
        mechanism: Mechanism = "command_line",
        collected_at: CollectedAt = None,
        expires_at: ExpiresAt = None,
        jurisdiction: Jurisdiction = "",
        do_not_personalize: DoNotPersonalize = False,
        request_id: RequestId = "",
        data_dir: DataDir = DEFAULT_DATA_DIR,
        address: Address = NO_ADDRESSES,
        as_json: AsJson = False,
    ) -> None:
        request = consent_pb.RecordRequest(
            request_id=request_id or uuid.uuid4().hex,
            subject=_subject(identity),
            answers=[consent_pb.PurposeAnswer(purpose=one, state=state) for one in purpose],
            notice_version=notice_version,
            notice_language=notice_language,
            mechanism=mechanism,
            jurisdiction=jurisdiction,
            do_not_personalize=do_not_personalize,
        )
        if collected_at is not None:
            request.collected_at.FromDatetime(collected_at)
        if expires_at is not None:
            request.expires_at.FromDatetime(expires_at)
        told = [*purpose, *(["personalization"] if do_not_personalize else [])]
        _show_version(_ask("Record", request, data_dir, address, as_json=as_json), word, told, as_json=as_json)

    command.__name__ = name
    command.__doc__ = help_text
    return command


grant = _answering(
    "grant", consent_pb.CONSENT_STATE_GRANTED, "granted", "Record that a person allows the purposes, under a notice."
)
deny = _answering(
    "deny", consent_pb.CONSENT_STATE_DENIED, "denied", "Record that a person was asked and does not allow the purposes."
)
object_to = _answering(
    "object", consent_pb.CONSENT_STATE_OBJECTED, "objected to", "Record that a person objects to the purposes."
)


def revoke(
    identity: Identities,
    purpose: AllPurposes = NO_PURPOSES,
    request_id: RequestId = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Take consent back. When this returns, no decision uses the profile any more."""
    request = consent_pb.RevokeRequest(
        request_id=request_id or uuid.uuid4().hex, subject=_subject(identity), purposes=purpose
    )
    answer = _ask("Revoke", request, data_dir, address, as_json=as_json)
    _show_version(answer, "revoked", list(answer.purposes), as_json=as_json)
    if IDENTITY_LINKING in answer.purposes and not as_json:
        console.print("links that were made stand: `comity identity describe` lists them, `unlink` takes one back")


def history(
    identity: Identities,
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Show every answer that a person gave, oldest first; that you looked is recorded."""
    request = consent_pb.HistoryRequest(subject=_subject(identity), access=access(read_as, reason))
    answer = _ask("History", request, data_dir, address, as_json=as_json)
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("recorded", "purpose", "answer", "until", "notice", "language", "mechanism", "place", "version"):
        table.add_column(column)
    for record in answer.records:
        table.add_row(
            _time(record.recorded_at),
            record.purpose,
            enum_word(consent_pb.ConsentState.DESCRIPTOR, record.state).lower(),
            _time(record.expires_at) if record.HasField("expires_at") else "",
            record.notice_version,
            record.notice_language,
            record.mechanism,
            record.jurisdiction,
            str(record.consent_version),
        )
    console.print(table if answer.records else "this person was never asked")


def receipt(
    identity: AnyIdentities = NO_PURPOSES,
    subject: SubjectId = "",
    version: Annotated[int, typer.Option(min=0, help="Of the change, as history gives it; 0: the newest.")] = 0,
    verify: Verify = None,
    public_key: PublicKey = "",
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Give the signed receipt of a change of consent (ISO/IEC TS 27560), or check one; that you looked is recorded."""
    from cli.privacy.receipts import as_document

    if verify is not None:
        show_verified(verify, public_key, as_json=as_json)
        return
    request = privacy_pb.GetReceiptRequest(
        subject=parse_subject(identity, subject), consent_version=version, access=access(read_as, reason)
    )
    answer = _ask("GetReceipt", request, data_dir, address, as_json=as_json, service="privacy")
    # A receipt is a document: people read what programs verify.
    print_json(as_document(answer))


def show_verified(file: Path, public_key: str, *, as_json: bool) -> None:
    """Say whether the receipt in the file is genuine, as far as that can be told; ends with 1 when it is not."""
    from cli.privacy.receipts import verify as verified

    try:
        content, signed_by = verified(file.read_text(), public_key)
    except (ServiceError, UnicodeDecodeError) as error:
        fail(error if isinstance(error, ServiceError) else invalid("FILE", "is no text"), as_json=as_json)
    if as_json:
        # Without the site's key nobody can say: anybody can sign with a key of their own.
        genuine = True if public_key else None
        print_json({"genuine": genuine, "signed_by": signed_by, "key_given": bool(public_key), "receipt": content})
    elif public_key:
        console.print(styled("[green]genuine[/]: receipt {} is as that key signed it", content["receipt_id"]))
    else:
        console.print(
            f"signed by {signed_by}, not checked: receipt {content['receipt_id']} is as that key signed it, but "
            "anybody can sign; give the key that the site publishes with --public-key"
        )


def _subject(identity: list[str]) -> types_pb.SubjectRef:
    pairs = parse_identities(identity).items()
    return types_pb.SubjectRef(identities=[types_pb.Identity(namespace=name, value=value) for name, value in pairs])


def _ask(
    method: str, request: Any, data_dir: Path, address: list[str], *, as_json: bool, service: str = "consent"
) -> Any:
    async def ask() -> Any:
        async with Services(resolve_addresses(data_dir, address)) as services:
            return await call(getattr(getattr(services, service), method), request, TIMEOUT_S)

    return run(ask(), as_json=as_json)


def _show_version(answer: Any, word: str, purposes: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True))
    else:
        console.print(f"{word} {', '.join(purposes)} for {answer.subject_id}, version {answer.consent_version}")


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime().isoformat(sep=" ", timespec="seconds")
