"""`comity trace show`: where the time of one decision went, from the spans that services wrote."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from cli.failures import fail
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir
from cli.output import console, print_json, styled
from cli.trace_spans import FALLBACK, KINDS, Node, SpanRecord, decision_tree
from services.chassis.errors import Kind, ServiceError

# Services write their spans every half second; a person who has just decided should not have to know that.
SETTLE_S = 1.5
POLL_S = 0.1
# Characters of one attribute.
SHOWN_MAX = 60


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    traces = typer.Typer(help="Look at traces of decisions.")
    traces.command()(show)
    app.add_typer(traces, name="trace")


def show(
    decision_id: Annotated[str, typer.Argument(help="Id of the decision, as in its answer.", metavar="DECISION_ID")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the tree of spans of one decision, with the milliseconds each began after the call and took."""
    roots = settled_tree(data_dir / "traces", decision_id)
    if not roots:
        fail(
            ServiceError(
                Kind.NOT_FOUND,
                "TRACE_NOT_FOUND",
                f"no span in {data_dir / 'traces'} names decision {decision_id}: it was not sampled, its spans were "
                "exported over OTLP, or their file is gone; COMITY_TRACE_RATIO=1 at `comity up` samples every call",
            ),
            as_json=as_json,
        )
    began_ns = roots[0].span.start_ns
    if as_json:
        print_json({"decision_id": decision_id, "spans": [_as_object(root, began_ns) for root in roots]})
        return
    for root in roots:
        tree = Tree(_line(root, began_ns))
        _add(tree, root, began_ns)
        console.print(tree)


def settled_tree(folder: Path, decision_id: str, *, timeout_s: float = SETTLE_S) -> list[Node]:
    """The decision's tree once services had time to write all of it; empty when nothing was found in that time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        roots = decision_tree(folder, decision_id)
        ended_ns = max((node.span.end_ns for root in roots for node in root.walk()), default=time.time_ns())
        if (time.time_ns() - ended_ns) / 1e9 > timeout_s or time.monotonic() > deadline_s:
            return roots
        time.sleep(POLL_S)


def _add(tree: Tree, node: Node, began_ns: int) -> None:
    for child in node.children:
        _add(tree.add(_line(child, began_ns)), child, began_ns)


def _line(node: Node, began_ns: int) -> Text:
    span = node.span
    begin_ms, took_ms = (span.start_ns - began_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6
    color = "red" if span.failed else "bold"
    # In words: a log, a pipe and many eyes have no colors.
    state = "failed " if span.failed else "fallback " if span.attributes.get(FALLBACK) else ""
    return styled(
        "[dim]{}[/][{}]{}[/][{}]{}[/] {}  [cyan]{:.2f} ms[/] [dim]at {:.2f}[/]  [dim]{}[/]",
        "linked ▸ " if node.linked else "",
        "red" if span.failed else "yellow",
        state,
        color,
        span.service,
        span.name,
        took_ms,
        begin_ms,
        _told(span),
    )


def _told(span: SpanRecord) -> str:
    """The attributes that a person looks for: ours, and the beginning of a statement. --json has all of them."""
    told = [
        f"{name.removeprefix('comity.')}={_short(value)}"
        for name, value in span.attributes.items()
        if name.startswith(("comity.", "error.type")) and name != FALLBACK and value not in ("", [])
    ]
    statement = span.attributes.get("db.statement")
    return ", ".join([*told, _short(statement)] if statement else told)


def _short(value: Any) -> str:
    """The value on one line, cut where it gets long."""
    text = " ".join(str(each) for each in value) if isinstance(value, list) else " ".join(str(value).split())
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"


def _as_object(node: Node, began_ns: int) -> dict[str, Any]:
    span = node.span
    return {
        "name": span.name,
        "service": span.service,
        "kind": KINDS.get(span.kind, "unspecified"),
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "linked": node.linked,
        "start_ms": (span.start_ns - began_ns) / 1e6,
        "duration_ms": (span.end_ns - span.start_ns) / 1e6,
        "failed": span.failed,
        "fallback": bool(span.attributes.get(FALLBACK)),
        "attributes": span.attributes,
        "children": [_as_object(child, began_ns) for child in node.children],
    }
