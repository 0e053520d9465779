"""Consent strings by the million: valid ones of every kind, and what becomes of them in bad hands."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.consent.domain.signals.canada import CanadaCore, CanadaRestriction, CanadaString
from services.consent.domain.signals.gpp import NAMES, TCF_CANADA, TCF_EU, USP, Content, GppString, Section
from services.consent.domain.signals.tcf import (
    DISCLOSED_VENDORS_FROM,
    Core,
    PublisherTc,
    Restriction,
    RestrictionType,
    SegmentType,
    TcString,
)
from services.consent.domain.signals.us import UsSection, Value
from services.consent.domain.signals.us_layouts import COVERED, SENSITIVE, SENSITIVE_SEGMENT_COUNT, US_SECTIONS, Second
from services.consent.domain.signals.usp import Answer, UspString
from services.consent.domain.signals.vendors import Ranges, Vendors
from tests.unit.consent.signals import encode

NOW = datetime(2026, 6, 1, tzinfo=UTC)
TENTH = timedelta(milliseconds=100)
YEARS = 4 * 365
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What people and gateways put into a string that does not belong there.
FOREIGN = " \t\n\r\0=+/.~,;%&*'\"äß１\u200b\ud800"
MUTATED_TWICE = 0.25


@dataclass(frozen=True, slots=True)
class Forged:
    """A string: the signal it would be sent as, and whether it is as a valid one was forged."""

    signal: str
    text: str
    is_untouched: bool = False


class Forge:
    """Makes strings from a seed: the same seed, the same strings.

    Args:
        size: how many valid strings of TCF and of GPP there are to begin with.
        more: further valid strings, after their signals.
    """

    def __init__(self, seed: int, size: int, more: Sequence[tuple[str, str]] = ()) -> None:
        self._rng = random.Random(seed)
        rng = self._rng
        self.valid: dict[str, list[str]] = {
            "tc_string": [encode.tc(tc_string(rng), rng.choice(encode.TCF_FILLINGS)) for _ in range(size)],
            "gpp": [encode.gpp(gpp_string(rng), rng.choice(encode.GPP_FILLINGS)) for _ in range(size)],
            "usp": [encode.usp(usp_string(rng)) for _ in range(27)],
        }
        self.more: dict[str, list[str]] = {signal: [] for signal in self.valid}
        for signal, text in more:
            self.more[signal].append(text)

    def next(self) -> Forged:
        """The next string: mostly a valid one with one or two wounds."""
        rng = self._rng
        signal = rng.choices(("tc_string", "gpp", "usp"), (48, 48, 4))[0]
        fate = rng.random()
        if fate < 0.04:
            return Forged(signal, rng.choice(self.valid[signal]), is_untouched=True)
        if fate < 0.06:
            return Forged(signal, noise(rng))
        pool = self.more[signal] if self.more[signal] and rng.random() < 0.2 else self.valid[signal]
        text = rng.choice(pool)
        for _ in range(1 + (rng.random() < MUTATED_TWICE)):
            mutate = rng.choices(MUTATIONS, WEIGHTS)[0]
            text = mutate(rng, text, rng.choice(pool))
        return Forged(signal, text)


def flip(rng: random.Random, text: str, other: str) -> str:
    """One to three bits turned."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text)) if text else 0
        found = encode.CHARACTERS.find(text[at : at + 1]) if text else -1
        if found >= 0:
            text = text[:at] + encode.CHARACTERS[found ^ 1 << rng.randrange(6)] + text[at + 1 :]
    return text


def truncate(rng: random.Random, text: str, other: str) -> str:
    """The end lost, or the beginning."""
    at = rng.randint(0, len(text))
    return text[:at] if rng.random() < 0.8 else text[at:]


def splice(rng: random.Random, text: str, other: str) -> str:
    """The end of another string."""
    return text[: rng.randint(0, len(text))] + other[rng.randint(0, len(other)) :]


def stray(rng: random.Random, text: str, other: str) -> str:
    """A character that does not belong there, put in or put in place of one."""
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(FOREIGN) + text[at + rng.randint(0, 1) :]


def resize(rng: random.Random, text: str, other: str) -> str:
    """A character more or less, most of them where a segment ends."""
    ends = [at for at, character in enumerate(text + ".") if character in ".~"]
    at = rng.choice(ends) if rng.random() < 0.7 else rng.randint(0, len(text))
    if rng.random() < 0.5:
        return text[: max(at - 1, 0)] + text[at:]
    return text[:at] + rng.choice(("A", "AA", "AAAA", "B", rng.choice(encode.CHARACTERS))) + text[at:]


def shuffle(rng: random.Random, text: str, other: str) -> str:
    """Segments or sections in another order, twice, away, or another string's."""
    separator = rng.choice(".~") if "~" in text else "."
    parts = text.split(separator)
    at = rng.randrange(len(parts))
    match rng.randrange(4):
        case 0:
            rng.shuffle(parts)
        case 1:
            parts.insert(rng.randint(0, len(parts)), parts[at])
        case 2:
            del parts[at]
        case _:
            parts[at] = rng.choice(other.split(separator))
    return separator.join(parts)


def noise(rng: random.Random) -> str:
    """Letters of the alphabet at random, behind a beginning that looks right."""
    begin = rng.choice(("", "C", "DBAB", "DBABLA~", "DBABMA~C", "1"))
    return begin + "".join(rng.choices(encode.CHARACTERS + ".~", k=rng.randint(0, 120)))


MUTATIONS: tuple[Callable[[random.Random, str, str], str], ...] = (flip, truncate, splice, stray, resize, shuffle)
WEIGHTS = (46, 8, 10, 8, 14, 14)


def tc_string(rng: random.Random) -> TcString:
    """A TC string that may be valid anywhere, in any order of its segments."""
    core = _core(rng)
    kinds = [SegmentType.DISCLOSED_VENDORS, SegmentType.ALLOWED_VENDORS, SegmentType.PUBLISHER_TC]
    order = rng.sample(kinds, rng.randint(0, 3))
    if core.last_updated >= DISCLOSED_VENDORS_FROM and SegmentType.DISCLOSED_VENDORS not in order:
        order.insert(rng.randint(0, len(order)), SegmentType.DISCLOSED_VENDORS)
    return TcString(
        core,
        disclosed_vendors=_vendors(rng) if SegmentType.DISCLOSED_VENDORS in order else None,
        allowed_vendors=_vendors(rng) if SegmentType.ALLOWED_VENDORS in order else None,
        publisher=_publisher(rng) if SegmentType.PUBLISHER_TC in order else None,
        order=tuple(order),
    )


def gpp_string(rng: random.Random) -> GppString:
    """A GPP string of one section or some."""
    ids = sorted(rng.sample(sorted(NAMES), rng.choice((1, 1, 2, 3, 6))))
    ranges: list[tuple[int, int]] = []
    for one in ids:
        if ranges and ranges[-1][1] == one - 1:
            ranges[-1] = (ranges[-1][0], one)
        else:
            ranges.append((one, one))
    return GppString(tuple(ranges), tuple(Section(one, NAMES[one], _content(rng, one)) for one in ids))


def usp_string(rng: random.Random) -> UspString:
    """A US Privacy string."""
    return UspString(*rng.choices(list(Answer), k=3))


def _content(rng: random.Random, number: int) -> Content:
    if number == TCF_EU:
        return tc_string(rng)
    if number == TCF_CANADA:
        return _canada(rng)
    return usp_string(rng) if number == USP else _us(rng, number)


def _us(rng: random.Random, number: int) -> UsSection:
    spec = US_SECTIONS[number]
    version = rng.choice(sorted(spec.versions))
    fields: dict[str, Value] = {}
    for one in spec.versions[version].fields:
        least = 1 if one.name == COVERED else 0
        values = [rng.randint(least, 2) for _ in range(max(one.count, 1))]
        fields[one.name] = tuple(values) if one.count else values[0]
    if spec.second is Second.SENSITIVE and rng.random() < 0.5:
        fields[SENSITIVE] = tuple(rng.randint(0, 2) for _ in range(SENSITIVE_SEGMENT_COUNT))
    gpc = rng.choice((None, False, True)) if spec.second is Second.GPC else None
    return UsSection(version, fields, gpc)


def _core(rng: random.Random) -> Core:
    created, last_updated = _times(rng)
    return Core(
        created=created,
        last_updated=last_updated,
        cmp_id=rng.randint(2, 900),
        cmp_version=rng.randint(0, 4095),
        consent_screen=rng.randint(0, 63),
        consent_language=_letters(rng),
        vendor_list_version=rng.randint(1, 300),
        policy_version=rng.choice((2, 4, 5)),
        is_service_specific=rng.random() < 0.9,
        use_non_standard_texts=rng.random() < 0.5,
        special_feature_optins=_numbers(rng, 12),
        purpose_consents=_numbers(rng, 24),
        purpose_legitimate_interests=_numbers(rng, 24),
        purpose_one_treatment=rng.random() < 0.2,
        publisher_country=_letters(rng),
        vendor_consents=_vendors(rng),
        vendor_legitimate_interests=_vendors(rng),
        restrictions=tuple(
            Restriction(purpose, RestrictionType(kind), _ranges(rng)) for purpose, kind in _restrictions(rng)
        ),
    )


def _canada(rng: random.Random) -> CanadaString:
    created, last_updated = _times(rng)
    core = CanadaCore(
        created=created,
        last_updated=last_updated,
        cmp_id=rng.randint(2, 900),
        cmp_version=rng.randint(0, 4095),
        consent_screen=rng.randint(0, 63),
        consent_language=_letters(rng),
        vendor_list_version=rng.randint(1, 300),
        policy_version=2,
        use_non_standard_stacks=rng.random() < 0.5,
        special_feature_express_consents=_numbers(rng, 12),
        purpose_express_consents=_numbers(rng, 24),
        purpose_implied_consents=_numbers(rng, 24),
        vendor_express_consents=_vendors(rng),
        vendor_implied_consents=_vendors(rng),
        restrictions=tuple(CanadaRestriction(purpose, kind, _vendors(rng)) for purpose, kind in _restrictions(rng)),
    )
    order = rng.sample([SegmentType.DISCLOSED_VENDORS, SegmentType.PUBLISHER_TC], rng.randint(0, 2))
    return CanadaString(
        core,
        disclosed_vendors=_vendors(rng) if SegmentType.DISCLOSED_VENDORS in order else None,
        publisher=_publisher(rng) if SegmentType.PUBLISHER_TC in order else None,
        order=tuple(order),
    )


def _publisher(rng: random.Random) -> PublisherTc:
    count = rng.choice((0, 0, 1, 5, 63))
    return PublisherTc(_numbers(rng, 24), _numbers(rng, 24), count, _numbers(rng, count), _numbers(rng, count))


def _restrictions(rng: random.Random) -> list[tuple[int, int]]:
    return sorted({(rng.randint(1, 11), rng.randint(0, 2)) for _ in range(rng.choice((0, 0, 1, 3)))})


def _times(rng: random.Random) -> tuple[datetime, datetime]:
    days = NOW - timedelta(days=rng.randint(0, YEARS))
    created = days - rng.choice((timedelta(), rng.randint(0, 10**8) * TENTH))
    return created, days


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=2))


def _numbers(rng: random.Random, width: int) -> tuple[int, ...]:
    share = rng.choice((0.1, 0.5, 0.95))
    return tuple(one for one in range(1, width + 1) if rng.random() < share)


def _vendors(rng: random.Random) -> Vendors:
    spare = rng.choice((0, 0, 0, 40))
    if rng.random() < 0.5:
        ranges = _ranges(rng)
        return Vendors((ranges[-1][1] if ranges else 0) + spare, ranges)
    ids = _numbers(rng, rng.choice((0, 20, 120, 500)))
    return Vendors(max(ids, default=0) + spare, bits=sum(1 << one for one in ids))


def _ranges(rng: random.Random) -> Ranges:
    found = []
    last = 0
    for _ in range(rng.choice((0, 1, 3, 12))):
        first = last + rng.randint(1, 100)
        last = first + rng.choice((0, 0, rng.randint(1, 60)))
        found.append((first, last))
    return tuple(found)
