"""`comity privacy …`: what a privacy officer does for one person, and with all that is kept."""

import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from cli.commands_consent import show_verified
from cli.commands_decide import property_value
from cli.connections import NO_ADDRESSES, Address, Services, resolve_addresses
from cli.failures import fail, run
from cli.options import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    PublicKey,
    ReadAs,
    Reason,
    RequestId,
    Verify,
    access,
)
from cli.output import console, print_json, progress, progress_bar, styled
from cli.parsing import AnyIdentities, SubjectId, parse_facts, parse_subject
from services.chassis.rpc_client import call, tried_again
from services.chassis.words import enum_word

if TYPE_CHECKING:
    from cli.privacy.files import Found

# Erase waits for the largest Decide budget and tries every service once before it returns.
TIMEOUT_S = 15.0
NOTHING: list[str] = []
ErasureId: TypeAlias = Annotated[str, typer.Argument(metavar="ERASURE_ID", help="As erase printed it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    privacy = typer.Typer(help="A person's rights, the record of processing, and proof that what is erased is gone.")
    for command in (inventory, export, rectify, erase, status, receipt, key, scan):
        privacy.command()(command)
    app.add_typer(privacy, name="privacy")


def inventory(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Site bundle, whose declared part is joined in.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Print the record of processing: what is collected, why, where it is kept, for how long, and who reads it."""
    from cli.bundle import BundleError, load_bundle
    from cli.privacy.inventory import as_json as as_object
    from cli.privacy.inventory import declared_of

    answer = run(_ask("Inventory", pb.InventoryRequest(), data_dir, address), as_json=as_json)
    try:
        declared = declared_of(load_bundle(bundle), answer.services) if bundle is not None else []
    except BundleError as error:
        fail(error, as_json=as_json)
    if as_json:
        print_json(as_object(answer.services, declared))
        return
    if declared:
        rows = [
            (one.kind, one.name, one.what, ", ".join(one.purposes), one.why, one.owner, _days(one.retention_days))
            for one in declared
        ]
        _table("declared", ("kind", "name", "what", "purposes", "why", "owner", "kept"), rows)
    stored = [
        (
            service.service,
            f"{one.store} {one.name}",
            one.content,
            "yes" if one.sealed else "no",
            _days(one.retention_days),
            ", ".join(one.read_by),
            one.erasure,
        )
        for service in answer.services
        for one in service.holdings
    ]
    _table("stored", ("service", "where", "what", "sealed", "kept", "read by", "erasure"), stored)


def export(
    identity: AnyIdentities = NOTHING,
    subject: SubjectId = "",
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder for the files; made if missing.")] = Path(
        "export"
    ),
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Write everything that is held about a person into a folder: JSON Lines, their schema, and a page to read."""
    who = parse_subject(identity, subject)
    records_count = run(_export(who, access(read_as, reason), to, data_dir, address, quiet=as_json), as_json=as_json)
    if as_json:
        print_json({"folder": str(to), "records": records_count})
    else:
        console.print(f"{records_count} records in {to}: open {to / 'index.html'}")


def rectify(
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="As events/*.yaml names it.")],
    value: Annotated[str, typer.Argument(metavar="PROPERTY=VALUE", help="As it should have been recorded.")],
    identity: AnyIdentities = NOTHING,
    subject: SubjectId = "",
    event_id: Annotated[str, typer.Option(help="Only this event, as export gives it.")] = "",
    request_id: RequestId = "",
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Put a property of recorded behavior right; the old value is deleted."""
    ((name, right),) = parse_facts([value], "PROPERTY=VALUE").items()
    request = pb.RectifyRequest(
        request_id=request_id or uuid.uuid4().hex,
        subject=parse_subject(identity, subject),
        type=event_type,
        property=name,
        value=property_value(right),
        event_id=event_id,
        access=access(read_as, reason),
    )
    answer = run(_ask("Rectify", request, data_dir, address), as_json=as_json)
    if as_json:
        print_json({"count": answer.count})
    else:
        console.print(f"put right in {answer.count} events")


def erase(
    identity: AnyIdentities = NOTHING,
    subject: SubjectId = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until every service has deleted everything.")] = True,
    request_id: RequestId = "",
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Erase a person from every service, for ever. When this returns, no decision uses the profile any more."""
    request = pb.EraseRequest(
        request_id=request_id or uuid.uuid4().hex,
        subject=parse_subject(identity, subject),
        access=access(read_as, reason),
    )
    if not yes:
        typer.confirm("Erase everything about this person? It cannot be undone", abort=True, err=True)
    answer = run(_erase(request, data_dir, address, wait=wait, quiet=as_json), as_json=as_json)
    _show_erasure(answer, as_json=as_json)


def status(
    erasure_id: ErasureId,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Say how far an erasure is: what each service has done, and what is waited for."""
    answer = run(_ask("GetErasure", pb.GetErasureRequest(erasure_id=erasure_id), data_dir, address), as_json=as_json)
    _show_erasure(answer, as_json=as_json)


def receipt(
    erasure_id: Annotated[str, typer.Argument(metavar="[ERASURE_ID]", help="As erase printed it.")] = "",
    verify: Verify = None,
    public_key: PublicKey = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Give the signed receipt of an erasure that is done, or check one."""
    from cli.privacy.receipts import as_document, not_completed

    if verify is not None:
        show_verified(verify, public_key, as_json=as_json)
        return
    answer = run(_ask("GetErasure", pb.GetErasureRequest(erasure_id=erasure_id), data_dir, address), as_json=as_json)
    if answer.state != pb.ERASURE_STATE_COMPLETED:
        fail(not_completed(), as_json=as_json)
    print_json(as_document(answer))


def key(data_dir: DataDir = DEFAULT_DATA_DIR, address: Address = NO_ADDRESSES, as_json: AsJson = False) -> None:
    """Give the public key that receipts are signed with, to be published; as JSON: a JSON Web Key Set."""
    from cli.privacy.receipts import as_key_set

    answer = run(_ask("GetReceiptKey", pb.GetReceiptKeyRequest(), data_dir, address), as_json=as_json)
    if as_json:
        print_json(as_key_set(answer))
    else:
        console.print(f"{answer.public_key.hex()}  key {answer.key_id}: what receipt --verify takes as --public-key")


def scan(
    canary: Annotated[list[str], typer.Option("--canary", metavar="TEXT", help="Look for this; repeatable.")] = NOTHING,
    canaries: Annotated[
        Path | None, typer.Option("--canaries", metavar="FILE", exists=True, dir_okay=False, help="One text a line.")
    ] = None,
    key_hex: Annotated[
        list[str], typer.Option("--key-hex", metavar="HEX", help="Look for these bytes; repeatable.")
    ] = NOTHING,
    settle: Annotated[
        bool, typer.Option("--settle", help="Have the embedded servers put away deleted bytes first.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Look for texts in every file of a stack, in every form that they may be stored in; exit 1 when one is found.

    Plain, UTF-16, hex, base64, percent-encoded and escaped, also inside of gzip and zip files. What is looked for is
    never printed: #3 is the third text that was given.
    """
    try:
        wanted = _wanted(canary, canaries, key_hex)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--canary") from error
    found = run(_scan(wanted, data_dir, settle=settle, quiet=as_json), as_json=as_json)
    _show_found(found, len(wanted), as_json=as_json)
    if found.hits:
        raise typer.Exit(1)


async def _ask(method: str, request: Any, data_dir: Path, address: list[str]) -> Any:
    async with Services(resolve_addresses(data_dir, address)) as services:
        return await call(getattr(services.privacy, method), request, TIMEOUT_S)


async def _export(
    who: types_pb.SubjectRef, reader: types_pb.Access, to: Path, data_dir: Path, address: list[str], *, quiet: bool
) -> int:
    from cli.privacy.calls import export_records
    from cli.privacy.exporting import export_folder, write_line

    async with Services(resolve_addresses(data_dir, address)) as services:
        with progress(quiet=quiet) as tell:

            async def export() -> int:
                count = 0
                with export_folder(to) as lines:
                    async for record in export_records(services, who, reader):
                        write_line(lines, record)
                        count += 1
                        if count % 100 == 0:
                            tell(f"{count} records, {record['service']}")
                return count

            return await tried_again("consent.Export", export)


async def _erase(
    request: pb.EraseRequest, data_dir: Path, address: list[str], *, wait: bool, quiet: bool
) -> pb.GetErasureResponse:
    from cli.privacy.calls import until_erased

    async with Services(resolve_addresses(data_dir, address)) as services:
        begun = await call(services.privacy.Erase, request, TIMEOUT_S)
        if not wait:
            asked = pb.GetErasureRequest(erasure_id=begun.erasure_id)
            answer: pb.GetErasureResponse = await call(services.privacy.GetErasure, asked, TIMEOUT_S)
            return answer
        with progress(quiet=quiet) as tell:
            tell(f"erasure {begun.erasure_id}")
            return await until_erased(services, begun.erasure_id, lambda answer: tell(_how_far(answer)))


async def _scan(wanted: list[dict[str, bytes]], data_dir: Path, *, settle: bool, quiet: bool) -> "Found":
    from cli.privacy.files import scan_files, sizes
    from cli.privacy.scan import Scanner
    from cli.privacy.settling import folders_of, settled

    folders = folders_of(data_dir)
    async with AsyncExitStack() as stack:
        if settle:
            with progress(quiet=quiet) as tell:
                await stack.enter_async_context(settled(data_dir, tell))
        paths = sizes(folders)
        with progress_bar(quiet=quiet, of_bytes=True) as bar:
            task = bar.add_task("scanning", total=sum(paths.values()))
            return scan_files(Scanner(wanted), sorted(paths), lambda count: bar.advance(task, count))


def _wanted(texts: list[str], file: Path | None, keys: list[str]) -> list[dict[str, bytes]]:
    """The forms of everything to look for, in the order given: texts, lines of the file, keys.

    Raises:
        ValueError: naming which cannot be looked for, by its number.
    """
    from cli.privacy.scan import forms_of_text

    lines = file.read_text().splitlines() if file is not None else []
    texts = [*texts, *(line for line in lines if line)]
    if not texts and not keys:
        raise ValueError("say what to look for: --canary, --canaries or --key-hex")
    wanted = []
    for number, (make, text) in enumerate(
        [*((forms_of_text, one) for one in texts), *((_key, one) for one in keys)], 1
    ):
        try:
            wanted.append(make(text))
        except ValueError as error:
            raise ValueError(f"#{number} {error}") from error
    return wanted


def _key(text: str) -> dict[str, bytes]:
    from cli.privacy.scan import forms_of_bytes

    try:
        return forms_of_bytes(bytes.fromhex(text))
    except ValueError as error:
        raise ValueError("is not hex of at least eight bytes") from error


def _show_found(found: "Found", wanted_count: int, *, as_json: bool) -> None:
    if as_json:
        hits = [
            {
                "file": one.path,
                "first_offset": one.first_offset,
                "found": [
                    {"canary": number + 1, "form": form, "count": count}
                    for (number, form), count in sorted(one.counts.items())
                ],
            }
            for one in found.hits
        ]
        print_json(
            {
                "files": found.files_count,
                "bytes": found.bytes_count,
                "canaries": wanted_count,
                "canaries_found": len(found.canaries),
                "hits": hits,
                "unread": found.unread,
            }
        )
        return
    for one in found.hits:
        which = ", ".join(f"#{number + 1} {form} ×{count}" for (number, form), count in sorted(one.counts.items())[:8])
        more = " …" if len(one.counts) > 8 else ""
        console.print(styled("[red]{}[/] at {}: {}{}", one.path, one.first_offset, which, more))
    for path, why in found.unread.items():
        console.print(styled("[yellow]{}[/]: {}", path, why))
    color = "red" if found.hits else "green"
    counts = (len(found.canaries), wanted_count, found.files_count, found.bytes_count / 2**20)
    console.print(styled("[{}]{} of {}[/] found in {} files, {:,.0f} MiB", color, *counts))


def _show_erasure(answer: pb.GetErasureResponse, *, as_json: bool) -> None:
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True))
        return
    rows = [
        (
            one.service,
            enum_word(holdings_pb.ErasureStep.DESCRIPTOR, one.step).lower(),
            one.taken_at.ToDatetime().isoformat(sep=" ", timespec="seconds") if one.HasField("taken_at") else "",
            ", ".join(f"{count.count} {count.name}" for count in one.counts if count.count),
            one.waiting_for,
        )
        for one in answer.steps
    ]
    _table(f"erasure {answer.erasure_id}: {_how_far(answer)}", ("service", "step", "taken", "gone", "waits for"), rows)
    if answer.state == pb.ERASURE_STATE_COMPLETED:
        console.print(f"the receipt: comity privacy receipt {answer.erasure_id}")


def _how_far(answer: pb.GetErasureResponse) -> str:
    if answer.state == pb.ERASURE_STATE_COMPLETED:
        return "done"
    taken = sum(one.HasField("taken_at") for one in answer.steps)
    waiting = sorted({f"{one.service} ({one.waiting_for})" for one in answer.steps if one.waiting_for})
    return f"{taken} of {len(answer.steps)} steps" + (f", waits for {', '.join(waiting)}" if waiting else "")


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _days(days: int) -> str:
    return f"{days} days" if days else "until erased"
