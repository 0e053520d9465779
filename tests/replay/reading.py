"""What this tree makes of a recorded history: over the product's own readers, nothing of the tests in between."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.features.v1 import feature_set_pb2

from services.chassis.events import ORIGIN, LogPosition, RecordedEvent
from services.consent.domain.ledger import Answer
from services.consent.domain.ledger import fold as fold_ledger
from services.consent.domain.policy import Policy
from services.consent.domain.verdicts import Member, Query, evaluate
from services.consent.wire import decode_answer
from services.consent.wire.policy import declaration_of
from services.decision.domain.attempts import Logged
from services.decision.domain.plan import CompiledSite
from services.decision.domain.record import DecisionRecord
from services.decision.domain.release import NewModel
from services.decision.domain.serving import Serving
from services.decision.domain.site import Item
from services.decision.handlers.draft import Keys
from services.decision.handlers.inspect import InspectDecisions
from services.decision.handlers.rankers import Vetting
from services.decision.ranker import OnnxLoader
from services.decision.wire.record import record_from_bytes
from services.decision.wire.site import compiled_from_bytes, item_from_bytes
from services.features.domain.book import Book
from services.features.domain.item_counts import decode as decode_block
from services.features.domain.item_counts import fold_items, total
from services.features.domain.item_rows import build, moving_values, rows
from services.features.domain.members import contribution, empty, fold
from services.features.domain.members import decode as decode_member
from services.features.domain.reading import Question, read
from services.features.wire import behavior_from, feature_set_from_bytes
from services.features.wire import item_from_bytes as catalog_item_from_bytes
from services.identity.domain.identities import NAMESPACES
from services.identity.domain.subjects import Link, Named
from services.identity.domain.subjects import fold as fold_links
from services.identity.wire import IDENTITY_LINKED, linked_of

HISTORIES = Path(__file__).parent / "histories"

History = dict[str, Any]


def histories(what: str) -> list[Path]:
    """The files of all cuts that hold this."""
    return sorted(HISTORIES.glob(f"*/{what}.json"))


def load(path: Path) -> History:
    """A history."""
    history: History = json.loads(path.read_text())
    return history


def unpack(text: str) -> bytes:
    """The bytes that are kept as text."""
    return base64.b64decode(text)


class Kept:
    """Everything that a history of decisions keeps, behind the ports that Replay and Explain read."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._streams = {
            logged.record.decision_id: logged
            for logged in (
                Logged(newest_of(stream), len(stream["versions"]), "", ORIGIN) for stream in history["decisions"]
            )
        }

    def put(self, record: DecisionRecord) -> None:
        """Keep this decision in the place of its namesake."""
        self._streams[record.decision_id] = Logged(record, 1, "", ORIGIN)

    async def find(self, decision_id: str) -> Logged | None:
        """The newest version of the decision."""
        return self._streams.get(decision_id)

    async def load(self, site_version: str) -> CompiledSite | None:
        """The site under the version that it was kept under, as store.sites gives it."""
        if site_version != self._history["site_version"]:
            return None
        return compiled_from_bytes(unpack(self._history["site"]), unpack(self._history["feature_set"]))

    async def at(self, item_ids: Sequence[str], catalog_version: int) -> list[Item | None]:
        """The items, as store.catalog gives them."""
        assert catalog_version == self._history["catalog_version"]
        items = {item.id: item for item in map(item_from_bytes, map(unpack, self._history["items"]))}
        return [items.get(item_id) for item_id in item_ids]

    async def data(self, name: str, sha256: str) -> NewModel | None:
        """The model."""
        kept = self._history["model"] | {"onnx": unpack(self._history["model"]["onnx"])}
        return NewModel(**kept, registered_unsigned=True) if (name, sha256) == (kept["name"], kept["sha256"]) else None

    async def verdict(self, model: NewModel, checker: str) -> str:
        """As the trial of this model is remembered: nothing is wrong with it."""
        return ""

    def inspect(self) -> InspectDecisions:
        """Replay and Explain over all this."""
        kept: Any = self
        keys = Keys(unpack(self._history["seed_key"]), b"")
        return InspectDecisions(
            log=kept,
            sites=kept,
            catalog=kept,
            models=kept,
            vetting=Vetting(kept, OnnxLoader(), ()),
            keys=keys,
            accesses=kept,
            serving=Serving,
        )


def newest_of(stream: History) -> DecisionRecord:
    """The decision of a stream as it stands."""
    return record_from_bytes(unpack(stream["versions"][-1]), stream["member_id"])


def outcome_of_decision(record: DecisionRecord) -> History:
    """What was shown, and why."""
    return {
        "reason": record.choice.reason.name,
        "fallback_reason": record.choice.fallback_reason.name,
        "item_ids": list(record.choice.slate.item_ids),
        "learnable": record.choice.learnable,
        "layer": record.layer.name,
    }


def outcome_of_consent(history: History) -> History:
    """What is allowed by each member alone, by both as one person, and in another place."""
    declaration = declaration_of(consent_pb.PublishPurposesRequest.FromString(unpack(history["declared"])))
    policy = Policy(
        "policy-1",
        {one.id: one for one in declaration.purposes},
        {one.version: one for one in declaration.notices},
        {one.id: one for one in declaration.jurisdictions},
    )
    answers: dict[str, list[Answer]] = {}
    for event in map(_recorded, history["events"]):
        answers.setdefault(event.subject_id, []).append(decode_answer(event))
    standings = {member_id: fold_ledger(own) for member_id, own in answers.items()}
    first, second = answers
    merged_at, now = datetime.fromisoformat(history["merged_at"]), datetime.fromisoformat(history["now"])
    persons = {
        "first": (Member(first),),
        "second": (Member(second),),
        "merged": (Member(first), Member(second, merged_at)),
        "unknown": (Member("nobody"),),
    }
    outcome: History = {}
    for name, members in persons.items():
        evaluation = evaluate(Query(members, tuple(sorted(policy.purposes))), standings, policy, now)
        verdicts = {one.purpose: [one.allowed, one.state.name] for one in evaluation.verdicts}
        outcome[name] = {"verdicts": verdicts, "consent_version": evaluation.consent_version}
    return outcome


def outcome_of_links(history: History) -> History:
    """Who is who by the links that stand, with and without the last one; and what the facts of the log name."""
    links = [
        Link(
            row["link_id"],
            row["order"],
            datetime.fromisoformat(row["linked_at"]),
            tuple(Named(NAMESPACES[namespace], member_id) for member_id, namespace in row["members"].items()),
        )
        for row in history["rows"]
    ]
    linked = [linked_of(event.payload) for event in map(_recorded, history["events"]) if event.type == IDENTITY_LINKED]  # type: ignore[arg-type]
    return {
        "standing": _persons(links),
        "without_fourth": _persons([one for one in links if one.link_id != "link-4"]),
        "named": {
            fact.link_id: [fact.subject_id, *(f"{one.namespace.name}:{one.member_id}" for one in fact.named)]
            for fact in linked
        },
    }


def _persons(links: Sequence[Link]) -> History:
    return {
        member_id: [
            [one.member_id, "" if one.merged_at is None else one.merged_at.isoformat()] for one in subject.members
        ]
        for member_id, subject in sorted(fold_links(links).items())
    }


def outcome_of_features(history: History) -> History:
    """Vectors and rows, from the states that were kept and from the behavior folded anew."""
    stored = unpack(history["feature_set"])
    feature_set = feature_set_from_bytes(stored, feature_set_pb2.FeatureSet.FromString(stored).version)
    # States are read as the store reads them: by what every set that was ever published counts.
    book = Book({feature_set.version: feature_set})
    members, blocks = book.member_layout, book.item_layout
    items = [catalog_item_from_bytes(unpack(item)) for item in history["items"]]
    events = [behavior_from(event, event.payload) for event in map(_recorded, history["events"])]  # type: ignore[arg-type]
    table = build(feature_set, items)
    known = {item.id: contribution(members, item) for item in items}
    now_s = datetime.fromisoformat(history["now"]).timestamp()
    kept, anew = {}, {}
    for member_id, blob in history["members"].items():
        kept[member_id] = decode_member(members, unpack(blob), member_id, book.member_layouts)
        own = [event for event in events if event.member_id == member_id]
        anew[member_id] = fold(members, empty(members, member_id), own, lambda item_id, _: known.get(item_id))
    states = {
        (item_id, part): decode_block(blocks, unpack(blob), book.item_layouts)
        for item_id, part, blob in history["blocks"]
    }
    outcome: History = {}
    for name, of_members, of_items in (
        ("kept", kept, states),
        ("anew", anew, fold_items(blocks, {}, events)),
    ):
        questions = [Question([state], now_s) for state in of_members.values()]
        questions.append(Question(list(of_members.values()), now_s))
        answers = read(feature_set, members, table.weights, questions)
        own_blocks = [
            [state for (item_id, _), state in sorted(of_items.items()) if item_id == item.id] for item in items
        ]
        moving = moving_values(table, blocks, total(blocks, own_blocks), now_s)
        outcome[name] = {
            "vectors": answers.vectors.tolist(),
            "states": answers.states.tolist(),
            "rows": rows(table, moving).tolist(),
        }
    return outcome


def _recorded(event: History) -> RecordedEvent:
    position = LogPosition(*event.get("position", (1, 1, event["version"])))
    return RecordedEvent(
        event_id="",
        type=event["type"],
        payload=unpack(event["payload"]),
        occurred_at=datetime.fromisoformat(event["occurred_at"]),
        subject_id=event["subject_id"],
        traceparent="",
        stream_id=event["stream_id"],
        version=event["version"],
        position=position,
    )
