"""What callers pass, made fit to be sent.

Two kinds of values come in. What the program decides must be right: a number as user id is refused, with its field.
What a visitor's browser sends may be anything, and costs at most itself: a header, cookie or text that is not fit to be
sent becomes one that every service takes for what it is, malformed or nobody's.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping

from comity.common.v1 import types_pb2 as types_pb

from comity_client.errors import FieldError
from comity_client.results import ConsentSignals

# What the services take; see the protos.
IDENTITY_CHARACTERS_MAX = 256
SIGNAL_CHARACTERS_MAX = 8192
FACT_CHARACTERS_MAX = 1024
ID_CHARACTERS_MAX = 64
# In no alphabet that a consent string, an id of the catalog or the name of a place is written in.
UNFIT = "\N{REPLACEMENT CHARACTER}"

# No id may hold these, as the services have it: control characters, line breaks and what turns the writing around.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_DECLARED_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")

Fact = str | float | bool


def is_writable(text: str) -> bool:
    """Whether the text can be encoded: it has no lone surrogate, as JSON from a browser may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_sendable_id(text: str) -> bool:
    return len(text) <= ID_CHARACTERS_MAX and not _UNPRINTABLE.search(text) and is_writable(text)


def id_of(field: str, value: object) -> str:
    """An id of the caller's as it is where it can be sent, else its digest: the same id stays the same.

    Raises:
        FieldError: it is no text.
    """
    text = text_of(field, value)
    if _is_sendable_id(text):
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_of(field: str, value: object) -> str:
    """The text.

    Raises:
        FieldError: it is none.
    """
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, not {type(value).__name__}; write a number as text")
    return value


def texts_of(field: str, values: Iterable[object]) -> list[str]:
    """The texts.

    Raises:
        FieldError: one is none, or a single text was given for a list.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise FieldError(field, f"must be a list, not {type(values).__name__}")
    return [text_of(f"{field}[{index}]", one) for index, one in enumerate(values)]


def identities_of(identities: Mapping[str, str | None]) -> list[types_pb.Identity]:
    """Namespace → value as messages, without those that can be nobody's; where all are such, one without a value.

    Raises:
        FieldError: a value is no text, or has a lone surrogate.
    """
    if not isinstance(identities, Mapping):
        raise FieldError("identities", f"must map namespaces to values, not be {type(identities).__name__}")
    values = {
        text_of("identities", namespace): "" if value is None else text_of(entry("identities", namespace), value)
        for namespace, value in identities.items()
    }
    for namespace, value in values.items():
        if not (is_writable(namespace) and is_writable(value)):
            raise FieldError(entry("identities", namespace), UNENCODABLE, from_visitor=True)
    usable = {name: one for name, one in values.items() if 0 < len(one) <= IDENTITY_CHARACTERS_MAX and "\0" not in one}
    sent = usable or dict.fromkeys(list(values)[:1], "")
    return [types_pb.Identity(namespace=namespace, value=value) for namespace, value in sent.items()]


def entry(field: str, key: object) -> str:
    """The place of a key in a mapping; one that is no declared name is not repeated, for it may be somebody's data."""
    return f"{field}[{key if isinstance(key, str) and _DECLARED_NAME.fullmatch(key) else '…'}]"


UNENCODABLE = "holds a lone surrogate, which no text may: leave it out"


def signals_of(signals: ConsentSignals | None) -> types_pb.ConsentSignals | None:
    """The signals; one that cannot be sent as it came is sent as one that is malformed.

    Raises:
        FieldError: they are no ConsentSignals.
    """
    if signals is None:
        return None
    if not isinstance(signals, ConsentSignals):
        raise FieldError("consent_signals", f"must be ConsentSignals, not {type(signals).__name__}")
    return types_pb.ConsentSignals(
        gpc=_signal(signals.gpc),
        tc_string=_signal(signals.tc_string),
        gpp=_signal(signals.gpp),
        usp=_signal(signals.usp),
        jurisdiction=_signal(signals.jurisdiction),
        do_not_personalize=bool(signals.do_not_personalize),
    )


def _signal(value: object) -> str:
    """The header or string as it came; a missing one is empty."""
    if value is None:
        return ""
    fits = isinstance(value, str) and len(value) <= SIGNAL_CHARACTERS_MAX and "\0" not in value and is_writable(value)
    return str(value) if fits else UNFIT


def facts_of(context: Mapping[str, Fact | None]) -> dict[str, Fact]:
    """The facts of a context: of a text as much as is read, and no number that is none.

    Raises:
        FieldError: a value is neither text nor number nor boolean.
    """
    if not isinstance(context, Mapping):
        raise FieldError("context", f"must map names to values, not be {type(context).__name__}")
    found: dict[str, Fact] = {}
    for key, value in context.items():
        match value:
            case None:
                continue
            case str():
                cut = value[:FACT_CHARACTERS_MAX].replace("\0", UNFIT)
                found[id_of("context", key)] = cut.encode("utf-8", "replace").decode()
            case bool():
                found[id_of("context", key)] = value
            case int() | float():
                if (number := finite(value)) is not None:
                    found[id_of("context", key)] = number
            case _:
                raise FieldError(
                    entry("context", key), f"must be text, a number or a boolean, not {type(value).__name__}"
                )
    return found


def finite(value: float) -> float | None:
    """The number, or None where it is none or too large."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def item_ids_of(field: str, values: Iterable[object]) -> list[str]:
    """The ids that can be an item's.

    Raises:
        FieldError: one is no text.
    """
    return [one for one in texts_of(field, values) if _is_sendable_id(one)]


def candidates_of(field: str, values: Iterable[object]) -> list[str]:
    """The candidates that can be items; where none can, one that is none: an empty list would mean the whole catalog.

    Raises:
        FieldError: one is no text.
    """
    given = texts_of(field, values)
    return item_ids_of(field, given) or ([UNFIT] if given else [])
