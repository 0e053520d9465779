"""`comity train` and `comity eval`: learn from the log, and hold the platform against real people's choices."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.connections import NO_ADDRESSES, Address, Services, model_key_of, model_signer, resolve_addresses
from cli.failures import run, until_terminated
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir
from cli.output import console, print_json, progress_bar, styled
from cli.stack import temporary_folder
from services.chassis.errors import Kind, ServiceError, invalid

LIST_TIMEOUT_S = 10.0
DEFAULT_PURPOSE = "model_training"
# What an erasure's receipt promises of models.
RETRAIN_WITHIN = timedelta(days=30)

if TYPE_CHECKING:
    from comity.decision.v1.decision_service_pb2 import RegisteredModel

    from learning.compare import Compared
    from learning.pipeline import TrainReport, TrainRequest
    from learning.ranklens import RankLensRequest


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(train)
    evaluate = typer.Typer(help="Hold the platform against data whose answers are known.")
    evaluate.command()(ranklens)
    app.add_typer(evaluate, name="eval")


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name, as the policies of the site use it.")],
    purpose: Annotated[
        str, typer.Option(help="Learn only from people who allow this now; empty: from everybody's decisions.")
    ] = DEFAULT_PURPOSE,
    placement: Annotated[str, typer.Option(help="Learn from this placement only.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Decisions from then on, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Decisions before then, UTC.")] = None,
    activate: Annotated[
        bool | None,
        typer.Option(help="Let the model decide, or not; without either: if it is not worse than the active one."),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Learn a ranker from what was decided and what came back, register it and let it decide; no restart needed.

    Where another model decides, both are scored on the newest decisions, held out from training, and the new one
    decides if it is not worse.
    """
    from learning.pipeline import TrainRequest

    request = TrainRequest(
        name=model,
        since=utc(since),
        until=utc(until),
        placement_id=placement,
        purpose=purpose,
        activate=activate,
    )
    report = run(until_terminated(_train(request, data_dir, address, quiet=as_json)), as_json=as_json)
    if as_json:
        print_json(report.as_dict())
    else:
        _show_report(report)


def show_listed(found: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the registered models."""
    if as_json:
        print_json({"models": found})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("MODEL", "REGISTERED", "ACTIVE", "ERASED", "TRAIN AGAIN BEFORE"):
        table.add_column(column)
    for model in found:
        table.add_row(
            f"{model['name']}@{model['sha256'][:12]}",
            model["registered_at"],
            "yes" if model["active"] else _why_inactive(model),
            str(model["erased_subjects_count"] or ""),
            model["retrain_before"] or "",
        )
    console.print(table)
    for model in found:
        if model["stopped_why"]:
            version = f"{model['name']}@{model['sha256'][:12]}"
            console.print(styled("[yellow]{} does not decide[/]: {}", version, model["stopped_why"]))


def _why_inactive(model: dict[str, Any]) -> str:
    return "stopped" if model["stopped_why"] else "other features" if model["stopped_fitting"] else ""


def ranklens(
    file: Annotated[
        list[Path],
        typer.Option("--events", metavar="FILE", exists=True, dir_okay=False, help="JSON lines, gzipped or not."),
    ],
    train_before: Annotated[int, typer.Option(metavar="MS", help="Train on rankings before this, epoch ms.")],
    score_from: Annotated[int, typer.Option(metavar="MS", help="Judge rankings from this on, epoch ms.")],
    score_before: Annotated[int | None, typer.Option(metavar="MS", help="And before this, epoch ms.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Folder of the run's own stack, emptied first; without it a temporary one."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where the run in --data-dir ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the RankLens protocol on a stack of its own: record the rankings, train, and judge by NDCG.

    The data is in the public repository metarank/docker_compose_blog_example, file metarank/events.jsonl.gz, CC BY-SA
    4.0. Its time is the data's own; every event is visible strictly before a ranking or not at all.
    """
    from learning.ranklens import RankLensRequest

    if score_from < train_before:
        raise typer.BadParameter(
            "lies before --train-before: what is judged must not be trained on", param_hint="--score-from"
        )
    if resume and data_dir is None:
        raise typer.BadParameter("needs the folder of the earlier run; name it with --data-dir", param_hint="--resume")
    figures = run(
        until_terminated(
            _ranklens(file, RankLensRequest(train_before, score_from, score_before), data_dir, resume, as_json)
        ),
        as_json=as_json,
    )
    if as_json:
        print_json(figures)
        return
    table = Table(box=None, pad_edge=False, title=f"{figures['rankings']} rankings", title_justify="left")
    for column in ("", "NDCG@5", "NDCG@10"):
        table.add_column(column)
    for name, row in (("comity", figures), *figures["baselines"].items()):
        table.add_row(name, f"{row['ndcg@5']:.4f}", f"{row['ndcg@10']:.4f}")
    console.print(table)


async def list_models(data_dir: Path, address: list[str]) -> list[dict[str, Any]]:
    """Every registered model, oldest first, as JSON holds it."""
    from comity.decision.v1 import decision_service_pb2 as pb

    from services.chassis.rpc_client import call

    async with Services(resolve_addresses(data_dir, address)) as services:
        response = await call(services.release.ListModels, pb.ListModelsRequest(), LIST_TIMEOUT_S)
    return [listed(model) for model in response.models]


def listed(model: "RegisteredModel") -> dict[str, Any]:
    """A registered model as JSON holds it; *retrain_before* is None unless it knew somebody who was erased."""
    since = model.retrain_since.ToDatetime(tzinfo=UTC) if model.HasField("retrain_since") else None
    return {
        "name": model.name,
        "sha256": model.sha256,
        "feature_set_version": model.feature_set_version,
        "registered_at": model.registered_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"),
        "active": model.active,
        "stopped_fitting": model.stopped_fitting,
        "stopped_why": model.stopped_why,
        "metrics": dict(model.metrics),
        "erased_subjects_count": model.erased_subjects_count,
        "retrain_since": None if since is None else since.isoformat(timespec="seconds"),
        "retrain_before": None if since is None else (since + RETRAIN_WITHIN).isoformat(timespec="seconds"),
    }


async def _train(request: "TrainRequest", data_dir: Path, address: list[str], *, quiet: bool) -> "TrainReport":
    from learning.errors import LearningError
    from learning.pipeline import Services as LearningServices
    from learning.pipeline import train as learn

    model_key = model_key_of(data_dir, address)
    # To be told after the work that there is nothing to sign with would cost the work.
    model_signer(model_key)
    async with Services(resolve_addresses(data_dir, address), model_key=model_key) as services:
        await check_request(services, request)
        stubs = LearningServices(services.feedback, services.features, services.release, services.sign)
        with progress_bar(quiet=quiet) as bar:
            task = bar.add_task("training", total=None)
            try:
                return await learn(
                    stubs,
                    request,
                    progress=lambda step, done, most: bar.update(
                        task, description=f"training: {step}", completed=done, total=most or None
                    ),
                )
            except LearningError as error:
                raise ServiceError(Kind.FAILED_PRECONDITION, "NOTHING_LEARNED", str(error)) from error


async def check_request(services: Services, request: "TrainRequest") -> None:
    """Returns when everything that the request names is there: to be told after the work would cost the work.

    Raises:
        ServiceError: INVALID, naming what is not there and what is.
    """
    from comity.consent.v1 import consent_service_pb2 as consent_pb
    from comity.decision.v1 import decision_service_pb2 as pb

    from services.chassis.rpc_client import call_again

    site = (await call_again(services.catalog.DescribeSite, pb.DescribeSiteRequest(), LIST_TIMEOUT_S)).site
    purposes = []
    if "consent" in services.addresses:  # else its address was not given: training needs it for nothing else
        declared = consent_pb.DescribeConsentRequest(with_purposes=True)
        purposes = (await call_again(services.consent.DescribeConsent, declared, LIST_TIMEOUT_S)).purposes
    named = {policy.ranker.model for policy in site.policies if policy.ranker.model}
    _require_known("MODEL", request.name, named, "is in no policy", "policies name")
    if request.placement_id:
        placements = {placement.id for placement in site.placements}
        _require_known("--placement", request.placement_id, placements, "is no placement of the site", "there are")
    # A consent service of the release before does not tell.
    if request.purpose and purposes:
        _require_known("--purpose", request.purpose, set(purposes), "is not declared", "declared are")
    if request.since is not None and request.until is not None and request.since >= request.until:
        raise invalid("--until", "is not after --since; nothing lies between them")


def _require_known(field: str, value: str, known: set[str], what: str, are: str) -> None:
    if value not in known:
        raise invalid(field, f"{value} {what}; {are}: {', '.join(sorted(known)) or 'none'}")


async def _ranklens(
    files: list[Path],
    request: "RankLensRequest",
    data_dir: Path | None,
    resume: bool,
    quiet: bool,
) -> dict[str, Any]:
    from cli.ranklens import evaluate

    if data_dir is not None:
        return await evaluate(files, request, data_dir, quiet=quiet, resume=resume)
    with temporary_folder("comity-ranklens-") as folder:
        return await evaluate(files, request, folder, quiet=quiet)


def _show_report(report: "TrainReport") -> None:
    measure = "NDCG@10" if report.held_out_auc is None else "AUC"
    figure = report.held_out_ndcg10 if report.held_out_auc is None else report.held_out_auc
    measured = f"{figure:.4f}" if figure is not None else "not measured: too few decisions"
    counts = report.counts
    what = "decides where a policy names it" if report.active else "is registered"
    console.print(styled("[bold]{}[/] {}", report.model_version, what))
    console.print(
        f"learned from {counts.used} of {counts.decisions} decisions, {report.rows_count} rows, {report.rounds} trees"
    )
    console.print(
        f"held-out {measure} {measured}; scores differ from the trainer's by at most {report.parity_difference_max:.1e}"
    )
    if report.compared is not None:
        _show_compared(report, report.compared)
    left_out = {
        "not answered": counts.without_outcome,
        "fallbacks": counts.not_learnable,
        "without features": counts.without_features,
        "of another feature set": counts.other_feature_set,
        "unreadable": counts.unreadable,
    }
    if any(left_out.values()):
        told = ", ".join(f"{n} {why}" for why, n in left_out.items() if n)
        console.print(styled("[dim]left out: {}[/]", told))
    if counts.withheld:
        console.print(styled("[dim]not read for lack of consent: {} decisions and outcomes[/]", counts.withheld))


def _show_compared(report: "TrainReport", compared: "Compared") -> None:
    """The figures beside each other, and what follows."""
    active = compared.active_version.partition("@")[2][:12]
    if compared.new is None or compared.active is None:
        text = "of the decisions held out are newer than what it was trained on, which is too few to tell"
        told = (active, compared.decisions, text)
        console.print(styled("[yellow]not compared[/] with the active {}: {} {}", *told))
    else:
        console.print(
            f"on {compared.decisions} held-out decisions that neither has seen: {compared.measure} {compared.new:.4f}, "
            f"the active {active} {compared.active:.4f}"
        )
    if not report.active:
        command = f"`comity models activate {report.name}@{report.sha256[:12]}`"
        console.print(
            styled("[yellow]not activated[/]: the active model stays; {}, or --activate, lets it decide", command)
        )


def utc(when: datetime | None) -> datetime | None:
    """The moment as it was typed, in UTC."""
    return None if when is None else when.replace(tzinfo=UTC)
