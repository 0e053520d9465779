"""G13: a consent string that is not valid grants nothing; strings of IAB's own libraries are read as those read them.

Every fuzzed string is decoded and mapped to purposes. What is accepted is spelled again by the tests' encoder, which
shares no code with the decoder: unless it spells the very same string, the decoder accepted what is not valid. Where a
purpose is granted, the string's bits are looked at in their places, without the decoder.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from bench.prove import consent_vectors
from bench.prove.consent_forge import NOW, Forge, Forged
from bench.prove.proof import Proof
from services.consent.domain.ledger import State
from services.consent.domain.signals import reliance, vendors
from services.consent.domain.signals.bits import BitReader
from services.consent.domain.signals.decoding import RawSignals, Signals, decode
from services.consent.domain.signals.effect import Verdicts, purposes_from
from services.consent.domain.signals.errors import Code, Problem
from services.consent.domain.signals.gpp import NAMES, TCF_CANADA, TCF_EU, GppString
from services.consent.domain.signals.mapping import PurposeRule, SignalMapping, TcfRule
from services.consent.domain.signals.tcf import TcString
from tests.unit.consent.signals import encode

VECTORS_HELP = (
    "for G13: folder of consent strings with what IAB's reference libraries decode them to (public repositories "
    "InteractiveAdvertisingBureau/iabtcf-es and iabtcf-java, IABTechLab/iabgpp-es and iabgpp-java, Apache-2.0)"
)
POOL = 1_500
TEETH_SHARE = 20
TEETH_MAX = 50_000
# Rules that ask for as little as can be: what they do not grant, none does.
PURPOSES = {"1": 1, "2": 2, "5": 5, "7": 7}
MAPPING = SignalMapping(
    {
        name: PurposeRule(tcf=TcfRule((purpose,), weaker_basis=True), canada=TcfRule((purpose,), weaker_basis=True))
        for name, purpose in PURPOSES.items()
    },
    age_max=timedelta(days=36_500),
)
# Bits of a core segment: the CMP, whether it is service-specific, and the purposes on either basis.
CMP = slice(78, 90)
SERVICE_SPECIFIC = 138
EU_CONSENTS, EU_INTERESTS = 152, 176
CANADA_EXPRESS, CANADA_IMPLIED = 151, 175
CONSENT_ONLY = (1, 3, 4, 5, 6)
SEGMENTS = ("core", "disclosed_vendors", "allowed_vendors", "publisher")

Decode = Callable[[Forged], Signals]


def prove_strings(vectors_dir: Path | None, fuzz_count: int, seed: int) -> Proof:
    """Vectors read as IAB's libraries read them, and nothing granted by what is not valid.

    Args:
        vectors_dir: the folder of IAB's strings; None: only fuzzing.
        fuzz_count: how many strings are tried.
        seed: of the strings.
    """
    vectors_count, differing = consent_vectors.differences(vectors_dir) if vectors_dir else (0, [])
    more = [*consent_vectors.strings(vectors_dir)] if vectors_dir else []
    judge = Judge(Forge(seed, POOL, more))
    judge.run(fuzz_count)
    teeth_count = min(TEETH_MAX, max(fuzz_count // TEETH_SHARE, 2_000))
    teeth = {name: _found_without(protection, seed, teeth_count) for name, protection in PROTECTIONS.items()}
    if differing or judge.failing:
        print(f"differing: {differing}; failing: {judge.failing}", file=sys.stderr)
    return Proof(
        trials=vectors_count + fuzz_count,
        failures=len(differing) + sum(judge.failures.values()),
        teeth=teeth,
        facts={
            "vectors": vectors_count,
            "vectors_differing": len(differing),
            "crashes": judge.failures["crash"],
            "grants_from_invalid": judge.failures["granted"],
            **judge.shares(fuzz_count),
        },
    )


class Judge:
    """Decodes strings and says which of them failed.

    Attributes:
        failures: by kind: crash, accepted (what is not valid), granted (by what is not valid), refused (what is).
        failing: the first few kinds with the codes of their problems; no strings.
    """

    def __init__(self, forge: Forge, decode_one: Decode | None = None) -> None:
        self._forge = forge
        self._decode = decode_one or _decode
        self._headers = {text.split("~")[0]: _ids(text) for text in (*forge.valid["gpp"], *forge.more["gpp"])}
        self.failures: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.failing: list[str] = []

    def run(self, count: int) -> None:
        """Try as many strings."""
        for _ in range(count):
            forged = self._forge.next()
            self.outcomes["mutated"] += not forged.is_untouched
            failure = self._try(forged)
            if failure:
                self.failures[failure] += 1
                self.failing = [*self.failing, f"{forged.signal}: {failure}"][:20]

    def shares(self, count: int) -> dict[str, float]:
        """What became of the strings, and how many of them reached each segment."""
        return {
            **{name: round(found / count, 4) for name, found in sorted(self.outcomes.items())},
            **{f"reached_{name}": round(found / count, 4) for name, found in sorted(self.reached.items())},
        }

    def _try(self, forged: Forged) -> str:
        try:
            signals = self._decode(forged)
            verdicts = purposes_from(signals, MAPPING, NOW)
        except Exception as error:  # a crash of any kind is what is looked for
            self.outcomes[f"crashed_{type(error).__name__}"] += 1
            return "crash"
        found = signals.tc or signals.gpp or signals.usp
        self._count_reach(forged, found if isinstance(found, Problem) else None)
        granted = [name for name, verdict in verdicts.items() if verdict.state is State.GRANTED]
        if found is None or isinstance(found, Problem):
            self.outcomes["refused" if found else "empty"] += 1
            return "granted" if granted else "refused" if forged.is_untouched else ""
        if signals.problems:
            self.outcomes["deviating"] += 1
            return "granted" if granted else "refused" if forged.is_untouched else ""
        self.outcomes["valid"] += 1
        self.outcomes["granting"] += bool(granted)
        if not is_spelled(forged, signals):
            return "granted" if granted else "accepted"
        return "" if is_claimed(forged, signals, verdicts) else "granted"

    def _count_reach(self, forged: Forged, problem: Problem | None) -> None:
        """Count the segments of which something was read: those before the problem, and mostly its own."""
        if problem is not None and problem.code is Code.TOO_LONG:
            return
        place = None if problem is None else problem.position
        # Of a segment that is no base64url nothing was read.
        is_read = problem is None or problem.code not in (Code.ALPHABET, Code.EMPTY_PART)
        if forged.signal == "usp":
            self.reached["usp"] += problem is None
        elif forged.signal == "tc_string":
            self._count_segments("tc", forged.text, place, is_read)
        else:
            self._count_sections(forged.text, place, is_read)

    def _count_sections(self, text: str, place: int | None, is_read: bool) -> None:
        header, *sections = text.split("~")
        begin = len(header) + 1
        self.reached["gpp_header"] += is_read or (place or 0) >= begin
        for number, section in zip(self._headers.get(header, ()), sections, strict=False):
            if place is not None and place < begin:
                return
            end = begin + len(section)
            local = place - begin if place is not None and place <= end else None
            self._count_segments(NAMES[number], section, local, is_read)
            begin = end + 1

    def _count_segments(self, name: str, text: str, place: int | None, is_read: bool) -> None:
        segments = text.split(".")
        if place is not None:
            segments = segments[: text.count(".", 0, place) + is_read]
        if not name.startswith("tc"):
            self.reached[name] += bool(segments)
            self.reached["us_second_segment"] += len(segments) > 1
            return
        for index, segment in enumerate(segments):
            kind = encode.CHARACTERS.find(segment[:1]) >> 3 if segment else -1
            if 0 <= kind < len(SEGMENTS) and (kind == 0) == (index == 0):
                self.reached[f"{name}_{SEGMENTS[kind]}"] += 1


def is_spelled(forged: Forged, signals: Signals) -> bool:
    """Whether the encoder of the tests spells the string from what was read in it."""
    try:
        if isinstance(signals.tc, TcString):
            return encode.is_tc(forged.text, signals.tc)
        if isinstance(signals.gpp, GppString):
            return encode.is_gpp(forged.text, signals.gpp)
        return not isinstance(signals.usp, Problem | None) and encode.usp(signals.usp) == forged.text
    except ValueError:
        return False


def is_claimed(forged: Forged, signals: Signals, verdicts: Verdicts) -> bool:
    """Whether the string's own bits say what was granted; every TCF section of it must."""
    granted = [PURPOSES[name] for name, verdict in verdicts.items() if verdict.state is State.GRANTED]
    if not granted:
        return True
    cores = [(TCF_EU, forged.text)]
    if isinstance(signals.gpp, GppString):
        parts = forged.text.split("~")[1:]
        sections = zip(signals.gpp.sections, parts, strict=True)
        cores = [(one.id, text) for one, text in sections if one.id in (TCF_EU, TCF_CANADA)]
    return bool(cores) and all(_claims(number, text, purpose) for number, text in cores for purpose in granted)


def _claims(number: int, text: str, purpose: int) -> bool:
    bits = "".join(f"{encode.CHARACTERS.index(character):06b}" for character in text.split(".")[0])
    if int(bits[CMP], 2) <= 1:
        return False
    if number == TCF_CANADA:
        return "1" in (bits[CANADA_EXPRESS + purpose - 1], bits[CANADA_IMPLIED + purpose - 1])
    interest = bits[EU_INTERESTS + purpose - 1] == "1" and purpose not in CONSENT_ONLY
    return bits[SERVICE_SPECIFIC] == "1" and (bits[EU_CONSENTS + purpose - 1] == "1" or interest)


def _ids(text: str) -> tuple[int, ...]:
    found = decode(RawSignals(gpp=text)).gpp
    return tuple(one.id for one in found.sections) if isinstance(found, GppString) else ()


def _decode(forged: Forged) -> Signals:
    match forged.signal:
        case "tc_string":
            return decode(RawSignals(tc_string=forged.text))
        case "gpp":
            return decode(RawSignals(gpp=forged.text))
        case _:
            return decode(RawSignals(usp=forged.text))


def _decode_forgivingly(forged: Forged) -> Signals:
    """As the base64 decoders of most languages do: what is not of the alphabet is passed over."""
    kept = "".join(one for one in forged.text if one in encode.CHARACTERS + ".~")
    return _decode(Forged(forged.signal, kept))


@contextmanager
def _padding_unchecked() -> Iterator[Decode]:
    with patch.object(BitReader, "surplus", lambda self, units: None):
        yield _decode


@contextmanager
def _ranges_unchecked() -> Iterator[Decode]:
    with patch.object(vendors, "read_ranges", lambda reader, max_id: vendors.read_any_ranges(reader)):
        yield _decode


@contextmanager
def _alphabet_forgiven() -> Iterator[Decode]:
    yield _decode_forgivingly


@contextmanager
def _interests_unchecked() -> Iterator[Decode]:
    with patch.object(reliance, "CONSENT_ONLY_PURPOSES", frozenset[int]()):
        yield _decode


PROTECTIONS: dict[str, Callable[[], AbstractContextManager[Decode]]] = {
    "padding_unchecked": _padding_unchecked,
    "ranges_unchecked": _ranges_unchecked,
    "alphabet_forgiven": _alphabet_forgiven,
    "interests_unchecked": _interests_unchecked,
}


def _found_without(protection: Callable[[], AbstractContextManager[Decode]], seed: int, count: int) -> int:
    """Failures that the same test finds with one protection off."""
    with protection() as decode_one:
        judge = Judge(Forge(seed, POOL // 5), decode_one)
        judge.run(count)
    return sum(judge.failures.values())


def main() -> int:
    """Try, print, and say by the exit status whether it held."""
    parser = argparse.ArgumentParser(prog="python -m bench.prove.consent_strings", description=__doc__)
    parser.add_argument("--vectors", type=Path, metavar="DIR", help=VECTORS_HELP)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    proof = prove_strings(asked.vectors, asked.count, asked.seed)
    print(json.dumps({"G13": proof.to_json()}))
    return 0 if proof.holds else 1


if __name__ == "__main__":
    sys.exit(main())
