"""`comity models`: which there are and which decides, how good they are, and which is to decide from now on."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.table import Table

from cli.commands_learning import DEFAULT_PURPOSE, list_models, listed, show_listed, utc
from cli.connections import (
    NO_ADDRESSES,
    Address,
    Services,
    model_key_of,
    model_secret,
    model_signer,
    resolve_addresses,
)
from cli.failures import fail, run, until_terminated
from cli.options import DEFAULT_DATA_DIR, MODEL_KEY_VARIABLE, AsJson, DataDir
from cli.output import console, print_json, progress_bar, styled, write
from services.chassis.errors import Kind, ServiceError, invalid

TIMEOUT_S = 30.0

if TYPE_CHECKING:
    from comity.decision.v1.decision_service_pb2 import RegisteredModel
    from comity.features.v1.feature_set_pb2 import FeatureSet

    from learning.compare import Contender, Figure
    from learning.dataset import Examples

Model: TypeAlias = Annotated[str, typer.Argument(metavar="MODEL", help="NAME@SHA256, as far as it is unmistakable.")]
Name: TypeAlias = Annotated[str, typer.Option("--name", metavar="NAME", help="As the policies of the site use it.")]
File: TypeAlias = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="ONNX: float32 [n, columns] → [n, 1].")
]
Last: TypeAlias = Annotated[int, typer.Option("--last", metavar="N", min=1, help="Score the newest N decisions.")]
Placement: TypeAlias = Annotated[str, typer.Option("--placement", help="Decisions of this placement only.")]
Purpose: TypeAlias = Annotated[
    str, typer.Option("--purpose", help="Only of people who allow this now; empty: everybody's decisions.")
]
Since: TypeAlias = Annotated[
    datetime | None, typer.Option("--since", help="Decisions from then on, UTC: less to read.")
]
Key: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help=f"The site's model key; else {MODEL_KEY_VARIABLE}, else that of the stack here."
    ),
]
LAST = 1000
# Beside the model: 128 hex digits.
SIGNATURE_SUFFIX = ".sig"


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    group = typer.Typer(help="The registered models: without a command they are listed.", invoke_without_command=True)
    group.callback()(models)
    for command in (show, compare, activate, rollback, check, sign, key):
        group.command()(command)
    group.command("register")(register_file)
    app.add_typer(group, name="models")


def models(
    context: typer.Context,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """List the registered models, which of them decide, and which knew people who were erased since."""
    if context.invoked_subcommand is None:
        found = run(list_models(data_dir, address), as_json=as_json)
        show_listed(found, as_json=as_json)


def show(
    model: Model, data_dir: DataDir = DEFAULT_DATA_DIR, address: Address = NO_ADDRESSES, as_json: AsJson = False
) -> None:
    """Show one model: how it came to be, whether it decides, and since when."""
    told = run(_show(model, data_dir, address), as_json=as_json)
    if as_json:
        print_json(told)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in {**told, **told.pop("metrics")}.items():
        table.add_row(name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value or "no"))
    console.print(table)


def compare(
    model: Model,
    other: Annotated[str, typer.Argument(metavar="[OTHER]", help="Without it: the active one of the name.")] = "",
    last: Last = LAST,
    placement: Placement = "",
    purpose: Purpose = DEFAULT_PURPOSE,
    since: Since = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Score two models on the newest decisions; where one was trained on some of them, that is told, too."""
    asked = _Asked(last, placement, purpose, since)
    told = run(until_terminated(_compare(model, other, asked, data_dir, address, quiet=as_json)), as_json=as_json)
    _show_figures(told, as_json=as_json)


def activate(
    model: Model, data_dir: DataDir = DEFAULT_DATA_DIR, address: Address = NO_ADDRESSES, as_json: AsJson = False
) -> None:
    """Let a registered model decide wherever a policy names it; no restart needed."""
    _show_active(run(_activate(model, data_dir, address), as_json=as_json), as_json=as_json)


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As the policies of the site use it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Let the model decide again that decided before the active one."""
    _show_active(run(_rollback(name, data_dir, address), as_json=as_json), as_json=as_json)


def check(
    file: File,
    name: Name,
    last: Last = LAST,
    placement: Placement = "",
    purpose: Purpose = DEFAULT_PURPOSE,
    since: Since = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Check an ONNX file that was made elsewhere: what would be refused, and how it scores beside the active model.

    It reads the site's feature columns, in their order. Nothing is registered.
    """
    asked = _Asked(last, placement, purpose, since)
    told = run(
        until_terminated(_check(file.read_bytes(), name, asked, data_dir, address, quiet=as_json)), as_json=as_json
    )
    _show_figures(told, as_json=as_json)


def sign(
    file: File, name: Name, key_file: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False
) -> None:
    """Sign an ONNX file as the model NAME of the site, into FILE.sig; asks no service, so the key can stay elsewhere.

    Only what the site's model key signed is registered, and only that decides.
    """
    signature = run(_signed(file.read_bytes(), name, key_file or model_key_of(data_dir)), as_json=as_json)
    target = file.with_name(file.name + SIGNATURE_SUFFIX)
    target.write_text(signature.hex() + "\n")
    if as_json:
        print_json({"signature": signature.hex(), "file": str(target)})
    else:
        console.print(styled("signed: [bold]{}[/]; `comity models register` takes it along", target))


def key(key_file: Key = None, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Print the public half of the model key: what COMITY_DECISION_MODEL_PUBLIC_KEY_FILE holds, one key a line."""
    from services.chassis.signing import public_hex

    try:
        public = public_hex("models", model_secret(key_file or model_key_of(data_dir)))
    except ServiceError as error:
        fail(error, as_json=as_json)
    if as_json:
        print_json({"public_key": public})
    else:
        write(public)


def register_file(
    file: File,
    name: Name,
    key_file: Key = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Register an ONNX file that was made elsewhere; `comity models activate` lets it decide.

    It is taken with the signature in FILE.sig (`comity models sign`); without that file it is signed now. Whom it was
    trained on is not known here: an erasure cannot mark it, and to train it again is up to whoever made it.
    """
    key_file = key_file or model_key_of(data_dir, address)
    beside = file.with_name(file.name + SIGNATURE_SUFFIX)
    signature = beside.read_text(errors="replace") if beside.exists() else ""
    version = run(_register(file.read_bytes(), name, signature, key_file, data_dir, address), as_json=as_json)
    if as_json:
        print_json({"model_version": version})
    else:
        console.print(styled("[bold]{}[/] is registered; `comity models activate` lets it decide", version))


class _Asked:
    """Which decisions are scored."""

    def __init__(self, last: int, placement_id: str, purpose: str, since: datetime | None) -> None:
        self.last = last
        self.placement_id = placement_id
        self.purpose = purpose
        self.since = utc(since)


async def _show(reference: str, data_dir: Path, address: list[str]) -> dict[str, Any]:
    async with Services(resolve_addresses(data_dir, address)) as services:
        model = find(await _registered(services), reference)
    return {**listed(model), "activated_at": _time(model)}


async def _compare(
    reference: str, other: str, asked: _Asked, data_dir: Path, address: list[str], *, quiet: bool
) -> dict[str, Any]:
    from learning.compare import contender

    async with Services(resolve_addresses(data_dir, address)) as services, _typed():
        registered = await _registered(services)
        chosen = [find(registered, reference), find(registered, other or reference.partition("@")[0])]
        if chosen[0] == chosen[1]:
            raise _refused("SAME_MODEL", f"{version_of(chosen[0])} is the active one; name another to compare with")
        feature_set = await _feature_set(services)
        for model in chosen:
            _require_fitting(model, feature_set)
        width = len(feature_set.columns)
        contenders = [await contender(services.release, model, width) for model in chosen]
        return await _figures(services, contenders, feature_set, asked, quiet=quiet)


async def _check(
    onnx: bytes, name: str, asked: _Asked, data_dir: Path, address: list[str], *, quiet: bool
) -> dict[str, Any]:
    from learning.compare import Contender, contender, loaded

    async with Services(resolve_addresses(data_dir, address)) as services, _typed():
        feature_set = await _feature_set(services)
        width = len(feature_set.columns)
        sha256 = hashlib.sha256(onnx).hexdigest()
        contenders = [Contender(loaded(name, sha256, feature_set.version, width, onnx), known_until_ms=None)]
        for model in await _registered(services):
            if (model.name, model.active) == (name, True) and model.feature_set_version == feature_set.version:
                contenders.append(await contender(services.release, model, width))
        return await _figures(services, contenders, feature_set, asked, quiet=quiet)


async def _figures(
    services: Services, contenders: "list[Contender]", feature_set: "FeatureSet", asked: _Asked, *, quiet: bool
) -> dict[str, Any]:
    """What the models make of the newest decisions, as JSON holds it."""
    from learning.compare import figures
    from learning.train import quality_name

    newest = await _newest(services, feature_set, asked, quiet=quiet)
    return {
        "measure": quality_name(newest),
        "decisions": len(newest.groups),
        "models": [_figure(one) for one in figures(contenders, newest)],
    }


def _figure(figure: "Figure") -> dict[str, Any]:
    return {"model_version": figure.model_version, "figure": figure.value, "seen": figure.seen_count}


async def _newest(services: Services, feature_set: "FeatureSet", asked: _Asked, *, quiet: bool) -> "Examples":
    from learning.dataset import replay_examples

    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("reading decisions", total=None)
        examples = await replay_examples(
            services.feedback,
            columns=tuple(column.name for column in feature_set.columns),
            feature_set=feature_set.version,
            since=asked.since,
            placement_id=asked.placement_id,
            purpose=asked.purpose,
            progress=lambda count: bar.update(task, completed=count),
        )
    return examples.tail(max(0, len(examples.groups) - asked.last))


async def _activate(reference: str, data_dir: Path, address: list[str]) -> str:
    async with Services(resolve_addresses(data_dir, address)) as services:
        return await _let_decide(services, find(await _registered(services), reference))


async def _rollback(name: str, data_dir: Path, address: list[str]) -> str:
    async with Services(resolve_addresses(data_dir, address)) as services:
        return await _let_decide(services, previous(await _registered(services), name))


async def _let_decide(services: Services, model: "RegisteredModel") -> str:
    from learning.register import activate

    return await activate(services.release, name=model.name, sha256=model.sha256)


async def _signed(onnx: bytes, name: str, key_file: Path | None) -> bytes:
    return model_signer(key_file)(f"{name}@{hashlib.sha256(onnx).hexdigest()}")


def _read_signature(text: str) -> bytes:
    """The signature that `comity models sign` wrote.

    Raises:
        ServiceError: INVALID.
    """
    try:
        return bytes.fromhex(text.strip())
    except ValueError as error:
        raise invalid(f"FILE{SIGNATURE_SUFFIX}", "holds no signature; make it anew: `comity models sign`") from error


async def _register(
    onnx: bytes, name: str, signature: str, key_file: Path | None, data_dir: Path, address: list[str]
) -> str:
    """The registered version.

    Args:
        signature: as text; empty: it is signed now.
    """
    from learning.export import Exported
    from learning.register import register

    made = _read_signature(signature) if signature else await _signed(onnx, name, key_file)
    async with Services(resolve_addresses(data_dir, address)) as services:
        feature_set = await _feature_set(services)
        return await register(
            services.release,
            Exported(onnx, hashlib.sha256(onnx).hexdigest(), 0.0),
            name=name,
            feature_set=feature_set.version,
            columns=tuple(column.name for column in feature_set.columns),
            metrics={},
            sign=lambda _: made,
        )


async def _registered(services: Services) -> "list[RegisteredModel]":
    from learning.compare import list_models

    return await list_models(services.release)


async def _feature_set(services: Services) -> "FeatureSet":
    from comity.features.v1.features_service_pb2 import DescribeFeatureSetRequest

    from services.chassis.rpc_client import call_again

    described = await call_again(services.features.DescribeFeatureSet, DescribeFeatureSetRequest(), TIMEOUT_S)
    feature_set: FeatureSet = described.feature_set
    return feature_set


def find(registered: "list[RegisteredModel]", reference: str) -> "RegisteredModel":
    """The model that NAME@SHA256 means, or NAME: its active one.

    Raises:
        ServiceError: NOT_FOUND (MODEL_UNKNOWN), FAILED_PRECONDITION (MODEL_AMBIGUOUS).
    """
    name, _, prefix = reference.partition("@")
    of_name = [model for model in registered if model.name == name]
    found = [model for model in of_name if (model.sha256.startswith(prefix) if prefix else model.active)]
    if len(found) > 1:
        raise _refused("MODEL_AMBIGUOUS", f"{reference} means {len(found)} models; give more of the SHA-256")
    if not found:
        known = ", ".join(version_of(model) for model in of_name) or "none"
        what = "no such model is registered" if prefix else "no model is active"
        raise ServiceError(Kind.NOT_FOUND, "MODEL_UNKNOWN", f"{reference}: {what}; of this name are: {known}")
    return found[0]


def previous(registered: "list[RegisteredModel]", name: str) -> "RegisteredModel":
    """The model of the name that decided before the active one.

    Raises:
        ServiceError: FAILED_PRECONDITION (NOTHING_TO_ROLL_BACK_TO).
    """
    others = [
        model
        for model in registered
        if model.name == name and not (model.active or model.stopped_fitting or model.stopped_why)
    ]
    before = [model for model in others if model.HasField("activated_at")]
    if not before:
        raise _refused(
            "NOTHING_TO_ROLL_BACK_TO",
            f"no other model called {name} has decided; `comity models` lists those there are",
        )
    return max(before, key=lambda model: model.activated_at.ToNanoseconds())


def version_of(model: "RegisteredModel") -> str:
    """As the list names it."""
    return f"{model.name}@{model.sha256[:12]}"


def _require_fitting(model: "RegisteredModel", feature_set: "FeatureSet") -> None:
    if model.feature_set_version != feature_set.version:
        raise _refused(
            "MODEL_OF_OTHER_FEATURES",
            f"{version_of(model)} reads another feature set than the site's: it cannot score these decisions",
        )


def _time(model: "RegisteredModel") -> str | None:
    if not model.HasField("activated_at"):
        return None
    return model.activated_at.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds")


def _refused(reason: str, message: str) -> ServiceError:
    return ServiceError(Kind.FAILED_PRECONDITION, reason, message)


@asynccontextmanager
async def _typed() -> AsyncIterator[None]:
    """What cannot be compared ends the command as any other refusal."""
    from learning.errors import LearningError

    try:
        yield
    except LearningError as error:
        raise _refused("NOT_COMPARED", str(error)) from error


def _show_active(version: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"model_version": version})
    else:
        console.print(styled("[bold]{}[/] decides where a policy names it", version))


def _show_figures(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    console.print(f"the newest {told['decisions']} decisions with an answer")
    table = Table(box=None, pad_edge=False)
    for column in ("MODEL", told["measure"], "MAY HAVE BEEN TRAINED ON"):
        table.add_column(column)
    for one in told["models"]:
        figure = "not measured" if one["figure"] is None else f"{one['figure']:.4f}"
        name, _, sha256 = one["model_version"].partition("@")
        table.add_row(f"{name}@{sha256[:12]}", figure, "not known" if one["seen"] is None else f"{one['seen']} of them")
    console.print(table)
