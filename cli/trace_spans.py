"""The spans of one decision, found in the OTLP-JSON files that services write, as a tree.

A call that was gathered with others into one batch is carried by the trace of the first of them; the others link to
it. So a decision's tree follows links out of its trace, and shows what handled its events later, which links into it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DECISION_ID = "comity.decision.id"
FALLBACK = "comity.fallback"
CONSUMER = 5
KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", CONSUMER: "consumer"}
ERROR = 2


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A span as it was exported; times in nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    failed: bool
    links: tuple[str, ...]


@dataclass(slots=True)
class Node:
    """A span with what happened inside it.

    Args:
        linked: it belongs to another trace, which serves or follows this one.
    """

    span: SpanRecord
    children: list["Node"] = field(default_factory=list)
    linked: bool = False

    def walk(self) -> Iterator["Node"]:
        """This node and all below it, in order of time."""
        yield self
        for child in self.children:
            yield from child.walk()


def decision_tree(folder: Path, decision_id: str) -> list[Node]:
    """The roots of the decision's trace with everything below them; empty when no span names the decision."""
    named = [span for span in read_spans(folder, [decision_id]) if _names(span, decision_id)]
    # A consumer names the decisions that it took in; it follows, unless nothing else is left of the decision.
    trace_ids = {span.trace_id for span in named if span.kind != CONSUMER} or {span.trace_id for span in named}
    if not trace_ids:
        return []
    own_and_linking = read_spans(folder, trace_ids)
    own = [span for span in own_and_linking if span.trace_id in trace_ids]
    linked_ids = {link for span in own for link in span.links}
    carriers = read_spans(folder, linked_ids) if linked_ids else []
    carrier_traces = {span.trace_id for span in carriers if span.span_id in linked_ids}
    followers = {span.trace_id for span in own_and_linking if _follows(span, own)}
    others = carrier_traces | followers
    spans = {span.span_id: span for span in own}
    if others:
        spans |= {span.span_id: span for span in read_spans(folder, others) if span.trace_id in others}
    return _tree(list(spans.values()), trace_ids)


def read_spans(folder: Path, words: Iterable[str]) -> list[SpanRecord]:
    """The spans of every export that holds one of the words; only those exports are parsed."""
    needles = [word.encode() for word in words]
    found: list[SpanRecord] = []
    for file in sorted(folder.glob("*.jsonl")):
        with file.open("rb") as lines:
            for line in lines:
                # A line without its end is still being written.
                if line.endswith(b"\n") and any(needle in line for needle in needles):
                    # A disk that was full leaves half a line behind: the others are read.
                    with suppress(ValueError, KeyError, TypeError, AttributeError):
                        found += _spans_of(json.loads(line))
    return found


def _names(span: SpanRecord, decision_id: str) -> bool:
    value = span.attributes.get(DECISION_ID)
    return value == decision_id or (isinstance(value, list) and decision_id in value)


def _follows(span: SpanRecord, own: Sequence[SpanRecord]) -> bool:
    """Whether the span handles a message that one of the others sent.

    Not every span that links into the trace is meant: other calls that joined its batches do so too.
    """
    ids = {each.span_id for each in own}
    return span.kind == CONSUMER and any(link in ids for link in span.links)


def _tree(spans: Sequence[SpanRecord], trace_ids: set[str]) -> list[Node]:
    """Nodes under their parents; a linked span under the span it is linked with, and only with what is below it."""
    nodes = {span.span_id: Node(span, linked=span.trace_id not in trace_ids) for span in spans}
    below: dict[str, list[Node]] = defaultdict(list)
    for node in nodes.values():
        below[node.span.parent_id].append(node)
    own = [node for node in nodes.values() if not node.linked]
    for node in own:
        below[node.span.span_id] += [nodes[link] for link in node.span.links if link in nodes and nodes[link].linked]
    own_ids = {node.span.span_id for node in own}
    for node in nodes.values():
        if node.linked and node.span.kind == CONSUMER:
            for link in own_ids.intersection(node.span.links):
                below[link].append(node)
    for span_id, node in nodes.items():
        node.children = sorted(below[span_id], key=lambda child: child.span.start_ns)
    roots = [node for node in own if node.span.parent_id not in nodes]
    return sorted(roots, key=lambda node: node.span.start_ns)


def _spans_of(request: dict[str, Any]) -> Iterator[SpanRecord]:
    """The spans of an OTLP/JSON ExportTraceServiceRequest."""
    for resource_spans in request.get("resourceSpans", ()):
        resource = _attributes(resource_spans.get("resource", {}))
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                yield SpanRecord(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    name=span.get("name", ""),
                    service=str(resource.get("service.name", "")),
                    kind=int(span.get("kind", 0)),
                    start_ns=int(span.get("startTimeUnixNano", 0)),
                    end_ns=int(span.get("endTimeUnixNano", 0)),
                    attributes=_attributes(span),
                    failed=span.get("status", {}).get("code") == ERROR,
                    links=tuple(link["spanId"] for link in span.get("links", ())),
                )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: _value(entry.get("value", {})) for entry in holder.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    """An OTLP/JSON AnyValue as a Python value; 64-bit numbers come as text."""
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_value(each) for each in value["arrayValue"].get("values", ())]
    return next(iter(value.values()), None)
