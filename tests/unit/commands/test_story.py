"""An export's records as sentences, and the data behind them."""

import base64

import pytest
from comity.decision.v1 import decision_events_pb2 as decision_pb

from cli.privacy.story import _SENTENCES, readable, sentence_of
from services.chassis.holdings import to_json

DECISION = "comity.decision.v1.DecisionMade"
EXPLANATION = [
    {"stage": "identity", "finding": "KNOWN subject, bucket 7, not in the holdout"},
    {
        "stage": "served",
        "finding": "boots, tea-towel: POPULAR because the features could not be read; never learned from",
    },
]


def decision() -> dict[str, object]:
    made = decision_pb.DecisionMade(placement_id="home", reason=decision_pb.REASON_POPULAR, request_digest=b"digest")
    for item_id in ("boots", "tea-towel"):
        made.slate.add(item_id=item_id, reason=decision_pb.REASON_POPULAR)
    made.inputs.matrix = b"numbers"
    made.inputs.exclusions.append(decision_pb.EXCLUSION_REASON_INELIGIBLE)
    return {**to_json(made), "event_id": "e1", "explanation": EXPLANATION}


def test_decision_says_what_was_shown_and_why() -> None:
    """In the words of its explanation, without a name of a program in them."""
    said = sentence_of(DECISION, decision())
    assert said == (
        "At home you were shown boots, tea-towel (popular because the features could not be read; never learned from)"
    )


def test_data_behind_a_sentence_has_neither_bytes_nor_names_of_enumerations() -> None:
    """Numbers for programs are left to the lines beside the page."""
    shown = readable(DECISION, decision())
    assert shown["reason"] == "popular"
    assert shown["inputs"]["exclusions"] == ["ineligible"]
    assert shown["explanation"]["identity"] == "known subject, bucket 7, not in the holdout"
    assert "matrix" not in shown["inputs"]
    assert base64.b64encode(b"digest").decode() not in str(shown)
    assert "REASON" not in str(shown)


def test_link_says_the_id_that_takes_it_back() -> None:
    """`comity identity unlink` wants it."""
    assert "l-1" in sentence_of("link", {"link_id": "l-1", "namespaces": ["user_id", "anonymous_id"]})


@pytest.mark.parametrize("kind", sorted(_SENTENCES))
def test_record_that_cannot_be_read_is_named(kind: str) -> None:
    """A record of another release, or one whose key is gone, is no reason to have no page."""
    assert sentence_of(f"comity.x.v1.{kind}", {"event_id": "e", "unreadable": "SUBJECT_ERASED"})


def test_kind_that_is_not_known_is_named_and_shown_as_it_is() -> None:
    """Whatever a newer service holds."""
    assert sentence_of("comity.x.v1.ShinyThing", {"n": 1}) == "Shiny thing"
    assert readable("comity.x.v1.ShinyThing", {"n_of": 1}) == {"n of": 1}
