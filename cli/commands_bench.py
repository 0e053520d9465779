"""`comity bench`: how fast Decide is, against an empty call and against the naive design, measured in the same run."""

import json
from typing import Annotated

import typer

from cli.failures import run, until_terminated
from cli.options import AsJson
from cli.output import errors, write


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(bench)


def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved measurements of each.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each measurement.")] = 6.0,
    as_json: AsJson = False,
) -> None:
    """Measure P1, P2 and what reading consent costs, as medians with spread; the last line is JSON.

    Figures are ratios to baselines of the same run: absolute times move from machine to machine.
    """
    from bench.decide import figures, measure, table

    def tell(line: str) -> None:
        errors.print(line)

    laps = run(until_terminated(measure(rounds=rounds, duration_s=seconds, progress=tell)), as_json=as_json)
    if not as_json:
        write(table(laps))
    write(json.dumps({name: figure.to_json() for name, figure in figures(laps).items()}))
