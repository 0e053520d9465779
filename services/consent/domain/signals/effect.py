"""What consent signals mean for the purposes of a site.

Every signal that bears on a purpose has its say, and the strictest one stands: an objection over a denial over a
grant. US sections and Sec-GPC can only object. What is malformed or deviates denies all that it could have borne on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from services.consent.domain.ledger import State
from services.consent.domain.signals.canada import CanadaString
from services.consent.domain.signals.decoding import Signals
from services.consent.domain.signals.errors import Problem
from services.consent.domain.signals.gpp import GppString, Section
from services.consent.domain.signals.mapping import PurposeRule, SignalMapping
from services.consent.domain.signals.reliance import Reason, reason_against_canada, reason_against_tc
from services.consent.domain.signals.tcf import TcString
from services.consent.domain.signals.us import UsSection, Value
from services.consent.domain.signals.usp import Answer, UspString

GPC = "gpc"
TC_STRING = "tc_string"
GPP = "gpp"
USP = "usp"
DO_NOT_PERSONALIZE = "do_not_personalize"

_OPTED_OUT = 1
_STRICTNESS = {State.UNSPECIFIED: 0, State.GRANTED: 1, State.DENIED: 2, State.OBJECTED: 3}


@dataclass(frozen=True, slots=True)
class SignalVerdict:
    """Where a purpose stands by the signals alone.

    Args:
        state: GRANTED, DENIED, OBJECTED, or UNSPECIFIED: no signal bears on it.
        signal: that decided it: gpc, tc_string, gpp, usp or do_not_personalize; empty where none did.
        reason: why.
        problem: what is wrong with the string, where that is why.
    """

    state: State = State.UNSPECIFIED
    signal: str = ""
    reason: Reason = Reason.NO_SIGNAL
    problem: Problem | None = None


# By purpose, one for each that the mapping has a rule for.
Verdicts = Mapping[str, SignalVerdict]

NO_SIGNAL = SignalVerdict()
# The person's own objection to personalization as such (GDPR Art. 21), for this request.
OBJECTION = SignalVerdict(State.OBJECTED, DO_NOT_PERSONALIZE, Reason.DO_NOT_PERSONALIZE)


def purposes_from(signals: Signals, mapping: SignalMapping, now: datetime) -> Verdicts:
    """Where each purpose of the mapping stands.

    Args:
        now: the time of the request, which strings may be too old for, or ahead of.
    """
    return MappingProxyType(
        {purpose: _strictest(_opinions(signals, rule, mapping, now)) for purpose, rule in mapping.rules.items()}
    )


def _strictest(opinions: Iterator[SignalVerdict]) -> SignalVerdict:
    return max(opinions, key=lambda one: _STRICTNESS[one.state], default=NO_SIGNAL)


def _opinions(signals: Signals, rule: PurposeRule, mapping: SignalMapping, now: datetime) -> Iterator[SignalVerdict]:
    if rule.gpc and signals.gpc:
        yield SignalVerdict(State.OBJECTED, GPC, Reason.GLOBAL_PRIVACY_CONTROL)
    if rule.tcf is not None and signals.tc is not None:
        yield from _of_tc(signals.tc, rule, mapping, now, TC_STRING)
    if rule.usp_opt_out_sale and signals.usp is not None:
        yield from _of_usp(signals.usp, USP)
    if rule.is_governed_by_gpp and signals.gpp is not None:
        yield from _of_gpp(signals.gpp, rule, mapping, now)


def _of_gpp(
    gpp: GppString | Problem, rule: PurposeRule, mapping: SignalMapping, now: datetime
) -> Iterator[SignalVerdict]:
    if isinstance(gpp, Problem):
        yield SignalVerdict(State.DENIED, GPP, Reason.MALFORMED, gpp)
        return
    if gpp.deviation is not None:
        yield SignalVerdict(State.DENIED, GPP, Reason.DEVIATING, gpp.deviation)
    for section in gpp.sections:
        yield from _of_section(section, rule, mapping, now)


def _of_section(section: Section, rule: PurposeRule, mapping: SignalMapping, now: datetime) -> Iterator[SignalVerdict]:
    match section.content:
        case UsSection() as us:
            yield from _of_us(us, rule)
        case UspString() as usp if rule.usp_opt_out_sale:
            yield from _of_usp(usp, GPP)
        case TcString() as tc if rule.tcf is not None:
            yield from _of_tc(tc, rule, mapping, now, GPP)
        case CanadaString() as canada if rule.canada is not None and canada.deviation is None:
            yield _answer(reason_against_canada(canada, rule.canada, now, mapping.age_max), GPP)


def _of_tc(
    tc: TcString | Problem, rule: PurposeRule, mapping: SignalMapping, now: datetime, signal: str
) -> Iterator[SignalVerdict]:
    if isinstance(tc, Problem):
        yield SignalVerdict(State.DENIED, signal, Reason.MALFORMED, tc)
    elif tc.deviation is not None:
        yield SignalVerdict(State.DENIED, signal, Reason.DEVIATING, tc.deviation)
    elif rule.tcf is not None:
        yield _answer(reason_against_tc(tc, rule.tcf, now, mapping.age_max), signal)


def _answer(against: Reason | None, signal: str) -> SignalVerdict:
    if against is None:
        return SignalVerdict(State.GRANTED, signal, Reason.CONSENTED)
    return SignalVerdict(State.DENIED, signal, against)


def _of_us(us: UsSection, rule: PurposeRule) -> Iterator[SignalVerdict]:
    if rule.gpc and us.gpc:
        yield SignalVerdict(State.OBJECTED, GPP, Reason.GLOBAL_PRIVACY_CONTROL)
    if any(_is_opted_out(us.fields.get(name, 0)) for name in rule.us_fields):
        yield SignalVerdict(State.OBJECTED, GPP, Reason.OPTED_OUT)


def _is_opted_out(value: Value) -> bool:
    return value == _OPTED_OUT if isinstance(value, int) else _OPTED_OUT in value


def _of_usp(usp: UspString | Problem, signal: str) -> Iterator[SignalVerdict]:
    if isinstance(usp, Problem):
        yield SignalVerdict(State.DENIED, signal, Reason.MALFORMED, usp)
    elif usp.opt_out_sale is Answer.YES:
        yield SignalVerdict(State.OBJECTED, signal, Reason.OPTED_OUT)
