"""`comity demo`: the main job end to end, with a page to read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failures import run, until_terminated
from cli.options import AsJson
from cli.output import console, print_json

if TYPE_CHECKING:
    from cli.demo.findings import Findings
    from cli.demo.run import DemoRequest

DEMO_DIR = Path(".comity/demo")
SITE = Path(__file__).parents[1] / "examples" / "shop"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(demo)


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Other visitors with other tastes.")] = 7,
    ranklens: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", exists=True, file_okay=False, help="Folder with RankLens events: run the real input as well."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few visitors only: shows that it works, too few to measure a gain.")
    ] = False,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Folder of the demo's own stack; emptied first.")
    ] = DEMO_DIR,
    as_json: AsJson = False,
) -> None:
    """Run the main job on a stack of its own: browse, learn, decide again, and hold it all against the truth.

    Exit code 0 only if everything held: every decision replays to the identical slate, nobody was personalized without
    consent or after revoking it, and the ranking beats the holdout and comes close to the best that is possible.
    """
    from cli.demo.page import show_page
    from cli.demo.run import FULL, QUICK, DemoRequest

    request = DemoRequest(data_dir, SITE, seed, QUICK if quick else FULL, quick)
    findings = run(until_terminated(_demo(request, ranklens, quiet=as_json)), as_json=as_json)
    summary = data_dir / "summary.json"
    summary.write_text(json.dumps(findings.summary(), indent=2) + "\n")
    if as_json:
        print_json(findings.summary())
    else:
        show_page(console, findings, summary)
    if not findings.held:
        raise typer.Exit(1)


async def _demo(request: "DemoRequest", ranklens: Path | None, *, quiet: bool) -> "Findings":
    from cli.demo.run import run_demo
    from cli.ranklens import evaluate, event_files, published_split

    files = event_files(ranklens) if ranklens is not None else []  # before minutes have gone by
    findings = await run_demo(request, quiet=quiet)
    if files:
        folder = request.data_dir / "ranklens"
        findings.ranklens = await evaluate(files, published_split(), folder, quiet=quiet)
    return findings
