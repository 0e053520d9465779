"""The tree of one decision, put together from what several services wrote."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.trace import _as_object, _line
from cli.trace_spans import decision_tree

DECISION = "0123456789abcdef0123456789abcdef"


def span(
    name: str, span_id: str, *, trace: str = "t1", parent: str = "", start: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "traceId": trace,
        "spanId": span_id,
        "parentSpanId": parent,
        "name": name,
        "kind": more.get("kind", 1),
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 10),
        "attributes": [{"key": key, "value": value} for key, value in more.get("attributes", {}).items()],
        "links": [{"traceId": link.split("/")[0], "spanId": link.split("/")[1]} for link in more.get("links", ())],
    }


def write(folder: Path, service: str, *spans: dict[str, Any]) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    request = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}
    with (folder / f"{service}-1.jsonl").open("a") as file:
        file.write(json.dumps(request) + "\n")


def decide(**more: Any) -> dict[str, Any]:
    return span("Decide", "a1", attributes={"comity.decision.id": {"stringValue": DECISION}}, **more)


def shape(folder: Path, decision_id: str = DECISION) -> list[Any]:
    def of(node: Any) -> Any:
        return [node.span.service + "." + node.span.name, *(of(child) for child in node.children)]

    return [of(root) for root in decision_tree(folder, decision_id)]


def test_spans_of_all_services_form_one_tree_in_order_of_time(tmp_path: Path) -> None:
    """Children lie under their parents whichever service wrote them, the earliest first."""
    write(tmp_path, "decision", decide(), span("call consent", "a3", parent="a1", start=5))
    write(tmp_path, "decision", span("call identity", "a2", parent="a1", start=1))
    write(tmp_path, "identity", span("Resolve", "b1", parent="a2", start=2))
    assert shape(tmp_path) == [
        ["decision.Decide", ["decision.call identity", ["identity.Resolve"]], ["decision.call consent"]]
    ]


def test_a_decision_of_several_placements_is_found_by_each_id(tmp_path: Path) -> None:
    """The attribute may hold one id or a list of them."""
    ids = {"arrayValue": {"values": [{"stringValue": "other"}, {"stringValue": DECISION}]}}
    write(tmp_path, "decision", span("Decide", "a1", attributes={"comity.decision.id": ids}))
    assert shape(tmp_path) == [["decision.Decide"]]
    assert shape(tmp_path, "other") == [["decision.Decide"]]


def test_a_batch_that_another_call_carried_is_followed_by_its_link(tmp_path: Path) -> None:
    """The batch shows under the span that waited for it, without the rest of the call that carried it."""
    write(tmp_path, "decision", decide(), span("gathered", "a2", parent="a1", start=1, links=["t2/c2"]))
    write(
        tmp_path,
        "decision",
        span("Decide", "c1", trace="t2"),
        span("batch", "c2", trace="t2", parent="c1", start=2),
        span("other work", "c3", trace="t2", parent="c1", start=3),
    )
    write(tmp_path, "consent", span("Evaluate", "d1", trace="t2", parent="c2", start=3))
    assert shape(tmp_path) == [["decision.Decide", ["decision.gathered", ["decision.batch", ["consent.Evaluate"]]]]]


def test_what_handled_its_events_later_is_shown_and_who_joined_its_batch_is_not(tmp_path: Path) -> None:
    """A consumer's link into the trace is part of the decision's story; another call's wait is not."""
    write(tmp_path, "decision", decide())
    write(tmp_path, "feedback", span("handle", "e1", trace="t3", start=9, links=["t1/a1"], kind=5))
    write(tmp_path, "decision", span("gathered", "f1", trace="t4", start=3, links=["t1/a1"]))
    assert shape(tmp_path) == [["decision.Decide", ["feedback.handle"]]]


def test_consumer_that_names_the_decision_is_no_root_beside_it(tmp_path: Path) -> None:
    """What took the decision in follows it; alone it is shown by itself, where the decision's own spans are lost."""
    told = {"comity.decision.id": {"stringValue": DECISION}}
    write(tmp_path, "feedback", span("process", "e1", trace="t3", start=9, links=["t1/a1"], kind=5, attributes=told))
    assert shape(tmp_path) == [["feedback.process"]]
    write(tmp_path, "decision", decide())
    assert shape(tmp_path) == [["decision.Decide", ["feedback.process"]]]


def test_lines_being_written_and_other_decisions_are_passed_over(tmp_path: Path) -> None:
    """A half-written line is no error, and nothing is found for an unknown decision."""
    write(tmp_path, "decision", decide())
    with (tmp_path / "decision-1.jsonl").open("a") as file:
        file.write('{"resourceSpans": "' + DECISION)
    assert shape(tmp_path) == [["decision.Decide"]]
    assert shape(tmp_path, "f" * 32) == []


def test_line_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    """Half a line of a disk that was full, or JSON of something else: the decision's own spans are shown."""
    (tmp_path / "decision-1.jsonl").write_text(f'{{"resourceSpans": [ {DECISION}\n{{"{DECISION}": 1}}\n')
    write(tmp_path, "decision", decide())
    assert [node.span.name for node in decision_tree(tmp_path, DECISION)] == ["Decide"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"status": {"code": 2}, "attributes": {"error.type": {"stringValue": "LATE"}}}, {"failed", "error.type=LATE"}),
        ({"attributes": {"comity.fallback": {"boolValue": True}}}, {"fallback"}),
        ({}, set()),
    ],
)
def test_state_of_a_span_is_told_in_words(tmp_path: Path, more: dict[str, Any], said: set[str]) -> None:
    """Whoever sees no color, or pipes it to a file, reads what failed and what was a fallback."""
    attributes = {"comity.decision.id": {"stringValue": DECISION}, **more.get("attributes", {})}
    told = span("Decide", "a1", attributes=attributes)
    write(tmp_path, "decision", {**told, **{name: value for name, value in more.items() if name == "status"}})
    (root,) = decision_tree(tmp_path, DECISION)
    plain = _line(root, root.span.start_ns).plain
    assert {word for word in ("failed", "fallback", "error.type=LATE") if word in plain} == said
    as_json = _as_object(root, root.span.start_ns)
    assert (as_json["failed"], as_json["fallback"]) == ("failed" in said, "fallback" in said)
