"""What a record of an export says, in words for the person whom it is about, and the data behind it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

# The messages that exports name are found in the descriptor pool, once they are there.
import comity.consent.v1.consent_events_pb2
import comity.decision.v1.decision_events_pb2
import comity.feedback.v1.feedback_events_pb2
import comity.identity.v1.identity_events_pb2  # noqa: F401
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Content = Mapping[str, Any]

# A word of an enumeration inside of a sentence.
_CAPITALS = re.compile(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b")


def sentence_of(schema: str, content: Content) -> str:
    """What the record says, as a sentence; of a kind that is not known here its name."""
    kind = schema.rpartition(".")[2]
    say = _SENTENCES.get(kind)
    return say(content) if say is not None and "unreadable" not in content else _words(kind)


def readable(schema: str, content: Content) -> dict[str, Any]:
    """The content with enumerations as words and without bytes, which are numbers for programs."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(schema)
    except KeyError:
        descriptor = None
    shown = _readable(content, descriptor)
    if "explanation" in content:
        shown["explanation"] = {step["stage"]: _plain(step["finding"]) for step in content["explanation"]}
    return shown


def _readable(content: Content, descriptor: Descriptor | None) -> dict[str, Any]:
    fields = {} if descriptor is None else descriptor.fields_by_name
    shown = {}
    for name, value in content.items():
        field = fields.get(name)
        if field is None or field.type != FieldDescriptor.TYPE_BYTES:
            shown[name.replace("_", " ")] = value if field is None else _value(value, field)
    return shown


def _value(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [_value(one, field) for one in value]
    if field.enum_type is not None:
        return _word(value, field.enum_type)
    if field.message_type is None:
        return value
    if field.message_type.GetOptions().map_entry:
        return {key: _value(one, field.message_type.fields_by_name["value"]) for key, one in value.items()}
    return _readable(value, field.message_type) if isinstance(value, Mapping) else value


def _word(name: Any, enum: EnumDescriptor) -> str:
    """REASON_RANKED → ranked; a number that no name is known of stays one."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(name).removeprefix(prefix).lower().replace("_", " ")


def _words(kind: str) -> str:
    """DataKeyMinted → Data key minted."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).capitalize()


def _plain(finding: str) -> str:
    return _CAPITALS.sub(lambda found: found[0].lower().replace("_", " "), finding)


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _decision(content: Content) -> str:
    shown = _listed(entry["item_id"] for entry in content.get("slate", []))
    served = next((step["finding"] for step in content.get("explanation", []) if step["stage"] == "served"), "")
    why = _plain(served.partition(": ")[2])
    return f"At {content.get('placement_id', '')} you were shown {shown}" + (f" ({why})" if why else "")


def _behavior(content: Content) -> str:
    items = content.get("item_ids", [])
    return f"You did this: {content.get('type', '')}" + (f", with {_listed(items)}" if items else "")


def _outcome(content: Content) -> str:
    item = content.get("item_id") or "no item"
    return (
        f"Your {content.get('type', '')} ({item}) counted as an answer to what {content.get('placement_id', '')} showed"
    )


def _access(content: Content) -> str:
    access = content.get("access", {})
    reason = f", because: {access['reason']}" if access.get("reason") else ""
    return f"{access.get('by') or 'Somebody'} read this by {content.get('method', '').rpartition('/')[2]}{reason}"


def _about(words: str, field: str) -> Callable[[Content], str]:
    return lambda content: f"{words} {content.get(field, '')}"


_SENTENCES: Mapping[str, Callable[[Content], str]] = {
    "link": lambda content: (
        f"These were taken to be one person, you: {_listed(content.get('namespaces', []))} (link {content['link_id']})"
    ),
    "member": _about("You are known by a", "namespace"),
    "data key": lambda _: "A key was made that what is kept about you is encrypted with",
    "ConsentGranted": _about("You agreed to", "purpose"),
    "ConsentDenied": _about("You said no to", "purpose"),
    "ConsentObjected": _about("You objected to", "purpose"),
    "ConsentRevoked": _about("You took back your agreement to", "purpose"),
    "ConsentExpired": _about("Your agreement ran out to", "purpose"),
    "BehaviorRecorded": _behavior,
    "DecisionMade": _decision,
    "OutcomeAttributed": _outcome,
    "PersonalDataAccessed": _access,
}
