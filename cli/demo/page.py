"""The page that the demo ends with: for a person who has two minutes."""

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table

from cli.demo.findings import Findings, Story
from cli.demo.statistics import Rate
from cli.output import styled

DIFFERENT_SHOWN_MAX = 5
# Name and enough of the hash to tell two models apart.
VERSION_SHOWN_MAX = 28
# Frames as wide as what stands in them; lines are as long as they are.
PANEL_WIDTH_MAX = 100


def show_page(console: Console, findings: Findings, summary: Path) -> None:
    """Print the findings."""
    width = min(console.width, PANEL_WIDTH_MAX)
    console.print(Rule(styled("[bold]Comity: the main job, end to end[/]")), width=width)
    console.print(_visitors(findings))
    for story in findings.stories:
        console.print(_story(story), width=width)
    console.print(_rates(findings))
    console.print(_numbers(findings))
    if findings.ranklens is not None:
        console.print(_ranklens(findings.ranklens))
    for decision_id, differences in findings.different[:DIFFERENT_SHOWN_MAX]:
        console.print(styled("[red]replays differently[/] {}: {}", decision_id, "; ".join(differences)))
    console.print(_checks(findings))
    console.print(styled("[dim]summary: {}   took {:.0f} s, seed {}[/]", summary, findings.seconds, findings.seed))


def _visitors(findings: Findings) -> str:
    people = ", ".join(f"{count} {word}" for word, count in findings.visitors.items())
    tracked = ", ".join(f"{count} {word.lower().replace('_', ' ')}" for word, count in sorted(findings.tracked.items()))
    return f"Visitors: {people}\nEvents tracked: {tracked}\n"


def _story(story: Story) -> RenderableType:
    decision = story.decision
    slate = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("slot", "item", "score", "propensity"):
        slate.add_column(column, justify="left" if column == "item" else "right")
    for entry in decision.entries:
        slate.add_row(str(entry.slot), entry.item_id, f"{entry.score:.3f}", f"{entry.propensity:.3f}")
    steps = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for step in story.explanation.steps:
        steps.add_row(styled("[cyan]{}[/]", step.stage), step.finding)
    why = decision.reason + (f", {decision.fallback_reason}" if decision.fallback_reason else "")
    title = styled("{}: {} was [bold]{}[/]", story.title, decision.placement_id, why)
    subtitle = styled("{}", decision.decision_id)
    return Panel(Group(slate, "", steps), title=title, title_align="left", subtitle=subtitle)


def _rates(findings: Findings) -> RenderableType:
    assert findings.rates is not None
    table = Table(title="Clicks an entry of home_hero, by visitors who agreed", title_justify="left", box=None)
    for column in ("", "rate", "95 % interval", "visitors"):
        table.add_column(column, justify="left" if not column else "right")
    for name, rate in (
        ("holdout (default slate)", findings.rates.holdout),
        ("ranked", findings.rates.ranked),
        ("known optimum", findings.rates.optimum),
    ):
        table.add_row(name, *_rate_cells(rate))
    return table


def _rate_cells(rate: Rate) -> tuple[str, str, str]:
    interval = rate.interval
    return f"{interval.value:.3f}", f"[{interval.low:.3f}, {interval.high:.3f}]", str(rate.visitors_count)


def _numbers(findings: Findings) -> str:
    latency = ", ".join(f"{name} {value:.1f} ms" for name, value in findings.latency_ms.items())
    fallbacks = ", ".join(f"{count} {word}" for word, count in sorted(findings.fallbacks.items())) or "none"
    model = findings.model
    version = str(model.get("version", ""))[:VERSION_SHOWN_MAX]
    ndcg = f"{model['ndcg']:.3f}" if model.get("ndcg") is not None else "not measured"
    return (
        f"\nModel: {version}…, {model.get('rows', 0)} rows, held-out NDCG@10 {ndcg}\n"
        f"Latency of Decide, at the client: {latency}\n"
        f"Fallbacks: {fallbacks}\n"
        f"Traces: {findings.traces}; "
        f"comity trace show DECISION_ID --data-dir {findings.traces.parent}\n"
    )


def _ranklens(figures: dict[str, object]) -> str:
    return (
        f"RankLens (real people): NDCG@5 {figures['ndcg@5']:.4f}, NDCG@10 {figures['ndcg@10']:.4f} "
        f"over {figures['rankings']} rankings; baselines {figures['baselines']}\n"
    )


def _checks(findings: Findings) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for check in findings.checks():
        waived = check.statistical and findings.quick and not check.held
        color, word = (
            ("green", "held") if check.held else ("yellow", "too small a run") if waived else ("red", "FAILED")
        )
        table.add_row(styled("[{}]{}[/]", color, word), check.name, styled("[dim]{}[/]", check.detail))
    return table
