"""`comity why` and `comity replay`: what the decision log says, and whether it would say it again."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from cli.commands_decide import fallback_name, reason_name
from cli.connections import NO_ADDRESSES, Address, Services, resolve_addresses
from cli.failures import run
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, ReadAs, Reason, access
from cli.output import console, errors, print_json, progress_bar, styled
from cli.stack.servers import together
from learning.log import replay_log
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call, call_again

TIMEOUT_S = 10.0
# Enough to keep one decision process busy; more only waits in its queue.
REPLAYS_IN_FLIGHT = 16
# Differences that are worth reading before something is done about the first.
DIFFERENT_SHOWN_MAX = 20


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(why)
    app.command()(replay)


def why(
    decision_id: Annotated[str, typer.Argument(metavar="DECISION_ID", help="As in the answer of decide.")],
    item: Annotated[str, typer.Option("--item", metavar="ID", help="Also say why this item is shown or not.")] = "",
    read_as: ReadAs = "",
    reason: Reason = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Say why a decision came out as it did: consent, eligible, scored, drawn, served; that you looked is recorded."""
    request = decision_pb.ExplainRequest(decision_id=decision_id, access=access(read_as, reason), item_id=item)
    answer = run(_explain(request, data_dir, address), as_json=as_json)
    if as_json:
        print_json(MessageToDict(answer, preserving_proto_field_name=True))
        return
    decision = answer.decision
    outcome = ", ".join(filter(None, (reason_name(decision.reason), fallback_name(decision.fallback_reason))))
    when = decision.decided_at.ToDatetime().isoformat(sep=" ", timespec="milliseconds")
    console.print(styled("[bold]{}[/] {} UTC: [bold]{}[/]", decision.placement_id, when, outcome))
    show_explanation(answer)


def show_explanation(answer: decision_pb.ExplainResponse) -> None:
    """Print the steps, and what would have been shown without exploration."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for step in answer.steps:
        table.add_row(styled("[cyan]{}[/]", step.stage), step.finding)
    console.print(table)
    if answer.without_exploration:
        items = ", ".join(entry.item_id for entry in answer.without_exploration)
        console.print(styled("[dim]without exploration: {}[/]", items))


def replay(
    decision_id: Annotated[str, typer.Argument(metavar="[DECISION_ID]", help="One decision.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every decision of the log.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Decide again from the logged inputs with the pinned site, model and seed; exit 0 only if all is identical."""
    if bool(decision_id) == everything:
        raise typer.BadParameter("name one decision, or say --all", param_hint="DECISION_ID")
    found = run(_replay(decision_id, data_dir, address, quiet=as_json), as_json=as_json)
    if as_json:
        different = [{"decision_id": name, "differences": differences} for name, differences in found.different]
        counts = {"decisions": found.decisions, "identical": found.identical}
        print_json({**counts, "different": different, "missing": found.missing, "newer": found.newer})
    else:
        for name, differences in found.different[:DIFFERENT_SHOWN_MAX]:
            errors.print(styled("[red]{}[/]: {}", name, "; ".join(differences)))
        for name in found.missing[:DIFFERENT_SHOWN_MAX]:
            errors.print(styled("[red]{}[/]: the log holds no such decision", name))
        for name in found.newer[:DIFFERENT_SHOWN_MAX]:
            errors.print(styled("[yellow]{}[/]: made by a newer release; replay it on a replica of that release", name))
        console.print(f"{found.identical} of {found.decisions} decisions replay to the identical slate")
    if found.missing or found.newer or found.identical != found.decisions:
        raise typer.Exit(1)


@dataclass(slots=True)
class Replayed:
    """How many decisions came out the same, which did not, which are not in the log, which a newer release made."""

    decisions: int = 0
    identical: int = 0
    different: list[tuple[str, list[str]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    newer: list[str] = field(default_factory=list)


async def replay_many(decision: Any, ids: Iterable[str], *, advance: Any = lambda: None) -> Replayed:
    """Replay each decision, a bounded number at once.

    Args:
        decision: stub of DecisionService.
        advance: called after each.
    """
    found = Replayed()
    waiting = iter(ids)

    async def worker() -> None:
        for name in waiting:
            await _replay_one(decision, name, found)
            advance()

    await together(*(worker() for _ in range(REPLAYS_IN_FLIGHT)))
    return found


async def _replay_one(decision: Any, name: str, found: Replayed) -> None:
    try:
        answer = await call_again(decision.Replay, decision_pb.ReplayRequest(decision_id=name), TIMEOUT_S)
    except ServiceError as error:
        if error.passes:
            raise
        if error.kind is Kind.NOT_FOUND:
            found.missing.append(name)
        elif error.reason == "NEWER_RELEASE":
            found.newer.append(name)
        else:
            # A record that cannot be read differs from what was shown, and keeps no other from being replayed.
            found.decisions += 1
            found.different.append((name, [f"it cannot be replayed: {error.message} [{error.reason}]"]))
        return
    found.decisions += 1
    if answer.identical:
        found.identical += 1
    else:
        found.different.append((name, list(answer.differences)))


async def _explain(
    request: decision_pb.ExplainRequest, data_dir: Path, address: list[str]
) -> decision_pb.ExplainResponse:
    async with Services(resolve_addresses(data_dir, address)) as services:
        answer: decision_pb.ExplainResponse = await call(services.decision.Explain, request, TIMEOUT_S)
        return answer


async def _replay(decision_id: str, data_dir: Path, address: list[str], *, quiet: bool) -> Replayed:
    async with Services(resolve_addresses(data_dir, address)) as services:
        ids = [decision_id] if decision_id else [name async for name in _logged_ids(services)]
        with progress_bar(quiet=quiet or len(ids) == 1) as bar:
            task = bar.add_task("replaying", total=len(ids))
            return await replay_many(services.decision, ids, advance=lambda: bar.advance(task))


async def _logged_ids(services: Services) -> AsyncIterator[str]:
    """Ids of all decisions that feedback has taken in."""
    request = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_DECISION])
    async for page in replay_log(services.feedback, request):
        for event in page.events:
            yield event.decision.decision_id
