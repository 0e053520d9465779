"""Options that many commands share, so that they are spelled and explained the same everywhere."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from comity.common.v1 import types_pb2 as types_pb

from cli.stack.state import DATA_DIR_VARIABLE
from cli.standing import HERE, standing_folder
from services.chassis.reads import this_user

# Of the file of the key that models are signed with, where it is not that of the stack here.
MODEL_KEY_VARIABLE = "COMITY_MODEL_KEY_FILE"


def _data_dir(context: typer.Context, param: typer.CallbackParam, value: Path) -> Path:
    """The folder, absolute; where none is named, the one that is meant (cli.standing)."""
    if context.resilient_parsing:
        return value
    return standing_folder() if source_of(context, str(param.name)) == "DEFAULT" else value.absolute()


def source_of(context: typer.Context, parameter: str) -> str:
    """Where the value of a parameter is from: COMMANDLINE, ENVIRONMENT or DEFAULT."""
    # By name, because the enumeration is of a copy of click inside typer.
    source = context.get_parameter_source(parameter)
    return source.name if source is not None else ""


DataDir: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar=DATA_DIR_VARIABLE,
        callback=_data_dir,
        show_default="./.comity if a stack is there, else the one brought up last",
        help="Folder of the stack: its data, logs, traces and secrets.",
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]

ReadAs: TypeAlias = Annotated[
    str, typer.Option("--as", metavar="NAME", help="Who reads, as it is recorded; you, unless you say so.")
]
Reason: TypeAlias = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, as it is recorded; names nothing of the person.")
]

Gpc: TypeAlias = Annotated[bool, typer.Option("--gpc", help="The browser sends Sec-GPC: 1.")]
TcString: TypeAlias = Annotated[str, typer.Option("--tc-string", metavar="TEXT", help="IAB TCF v2 string.")]
Gpp: TypeAlias = Annotated[str, typer.Option("--gpp", metavar="TEXT", help="IAB Global Privacy Platform string.")]
Usp: TypeAlias = Annotated[str, typer.Option("--usp", metavar="TEXT", help="US Privacy string.")]
Jurisdiction: TypeAlias = Annotated[
    str, typer.Option("--jurisdiction", metavar="PLACE", help="Where the person is, as jurisdictions.yaml names it.")
]
DoNotPersonalize: TypeAlias = Annotated[
    bool, typer.Option("--do-not-personalize", help="The person objects to personalization.")
]

RequestId: TypeAlias = Annotated[
    str, typer.Option("--request-id", help="The same id changes nothing twice; one is drawn when not given.")
]
Verify: TypeAlias = Annotated[
    Path | None,
    typer.Option("--verify", metavar="FILE", exists=True, dir_okay=False, help="Check this receipt, ask nobody."),
]
PublicKey: TypeAlias = Annotated[
    str, typer.Option("--public-key", metavar="HEX", help="With --verify: the key that it must be signed with.")
]

DEFAULT_DATA_DIR = HERE


def signals(
    *, gpc: bool, tc_string: str, gpp: str, usp: str, jurisdiction: str, do_not_personalize: bool
) -> types_pb.ConsentSignals | None:
    """What the person's browser or consent platform says; None where it says nothing."""
    said = types_pb.ConsentSignals(
        gpc="1" if gpc else "",
        tc_string=tc_string,
        gpp=gpp,
        usp=usp,
        jurisdiction=jurisdiction,
        do_not_personalize=do_not_personalize,
    )
    return said if said.ByteSize() else None


def access(read_as: str, reason: str) -> types_pb.Access:
    """Who reads personal data, and why; the user of this shell where nobody is named."""
    return types_pb.Access(accessor=read_as or this_user(), reason=reason)
