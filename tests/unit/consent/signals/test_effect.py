"""What signals mean for purposes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.consent.domain.ledger import State
from services.consent.domain.signals.canada import CanadaString
from services.consent.domain.signals.decoding import RawSignals, Signals, decode
from services.consent.domain.signals.effect import SignalVerdict, purposes_from
from services.consent.domain.signals.errors import Code, Problem
from services.consent.domain.signals.gpp import GppString
from services.consent.domain.signals.mapping import (
    AGE_MAX,
    DEFAULT_MAPPING,
    PurposeRule,
    SignalMapping,
    TcfRule,
    problems,
)
from services.consent.domain.signals.reliance import Reason
from services.consent.domain.signals.tcf import Core, PublisherTc, Restriction, RestrictionType, SegmentType, TcString
from services.consent.domain.signals.usp import Answer, UspString
from services.consent.domain.signals.vendors import Vendors
from tests.unit.consent.signals import encode
from tests.unit.consent.signals.samples import CANADA, CORE, plain_us, whole
from tests.unit.consent.signals.strategies import gpp_strings, tc_strings

NOW = datetime(2023, 3, 2, 9, tzinfo=UTC)
TC = TcString(CORE)
ADS = "ads"


def state(rule: PurposeRule, **signals: str) -> SignalVerdict:
    """Where a purpose with this rule stands by these signals."""
    return purposes_from(decode(RawSignals(**signals)), SignalMapping({ADS: rule}), NOW)[ADS]


def by_tc(rule: TcfRule, tc: TcString = TC, now: datetime = NOW) -> tuple[State, Reason]:
    verdict = purposes_from(Signals(tc=tc), SignalMapping({ADS: PurposeRule(tcf=rule)}), now)[ADS]
    assert verdict.signal == "tc_string"
    return verdict.state, verdict.reason


GRANTED = (State.GRANTED, Reason.CONSENTED)


def denied(reason: Reason) -> tuple[State, Reason]:
    return State.DENIED, reason


def with_core(**changes: object) -> TcString:
    fields = {name: getattr(CORE, name) for name in Core.__slots__}
    return replace(TC, core=Core(**{**fields, **changes}))


def test_no_signal_bears_on_nothing() -> None:
    """Nothing sent, nothing said: the ledger and the purpose's legal basis decide."""
    rule = PurposeRule(tcf=TcfRule((1,)), us_fields=("SaleOptOut",), usp_opt_out_sale=True, gpc=True)
    assert state(rule) == SignalVerdict()
    assert state(rule, gpc="", tc_string="", gpp="", usp="") == SignalVerdict()


def test_a_purpose_without_a_rule_is_left_alone() -> None:
    """Only what is mapped is touched."""
    assert dict(purposes_from(decode(RawSignals(gpc="1", tc_string="x")), SignalMapping(), NOW)) == {}


@pytest.mark.parametrize("text", [" ", "\t", "x", "1YNN ", "DBABMA", "None"])
@pytest.mark.parametrize("signal", ["tc_string", "gpp", "usp"])
def test_what_is_malformed_denies_all_that_it_governs(signal: str, text: str) -> None:
    """Blanks are not nothing; whatever does not decode grants nothing and says why."""
    rules = {
        "eu": PurposeRule(tcf=TcfRule((1,))),
        "canada": PurposeRule(canada=TcfRule((1,))),
        "us": PurposeRule(us_fields=("SaleOptOut",)),
        "old": PurposeRule(usp_opt_out_sale=True),
        "gpc": PurposeRule(gpc=True),
        "none": PurposeRule(),
    }
    governed = {"tc_string": {"eu"}, "gpp": set(rules) - {"none"}, "usp": {"old"}}[signal]
    verdicts = purposes_from(decode(RawSignals(**{signal: text})), SignalMapping(rules), NOW)
    assert {purpose for purpose, one in verdicts.items() if one.state is State.DENIED} == governed
    for purpose in governed:
        assert verdicts[purpose].reason is Reason.MALFORMED
        assert verdicts[purpose].signal == signal
        assert verdicts[purpose].problem is not None
    assert all(one == SignalVerdict() for purpose, one in verdicts.items() if purpose not in governed)


def test_consent_to_every_purpose_of_the_rule_grants() -> None:
    """And one that is missing denies."""
    assert by_tc(TcfRule((1, 3))) == GRANTED
    assert by_tc(TcfRule((1, 4))) == denied(Reason.PURPOSE_NOT_CONSENTED)
    assert by_tc(TcfRule((1,), special_features=(1,))) == GRANTED
    assert by_tc(TcfRule((1,), special_features=(1, 2))) == denied(Reason.SPECIAL_FEATURE_NOT_CONSENTED)


def test_legitimate_interest_counts_where_the_rule_admits_it() -> None:
    """Purpose 2 has it, and no consent."""
    assert by_tc(TcfRule((2,))) == denied(Reason.PURPOSE_NOT_CONSENTED)
    assert by_tc(TcfRule((1, 2), weaker_basis=True)) == GRANTED


@pytest.mark.parametrize("policy_version", [2, 3, 4, 5])
@pytest.mark.parametrize("purpose", [1, 3, 4, 5, 6])
def test_purposes_that_need_consent_take_no_legitimate_interest(purpose: int, policy_version: int) -> None:
    """Whoever claims it for storage or for purposes 3 to 6 has nothing, under any policy."""
    claims = {"purpose_consents": (), "purpose_legitimate_interests": tuple(range(1, 25))}
    rule = TcfRule((purpose,), weaker_basis=True)
    tc = with_core(**claims, policy_version=policy_version)
    assert by_tc(rule, tc) == denied(Reason.PURPOSE_NOT_CONSENTED)
    publisher = PublisherTc((), tuple(range(1, 25)), 0, (), ())
    own = replace(tc, publisher=publisher, order=(SegmentType.PUBLISHER_TC,))
    assert by_tc(replace(rule, publisher=True), own) == denied(Reason.PURPOSE_NOT_CONSENTED)
    assert by_tc(TcfRule((7,), weaker_basis=True), tc) == GRANTED


def test_the_publishers_own_use_has_its_own_segment() -> None:
    """The core does not speak for it; without the segment nothing was asked."""
    rule = TcfRule((5,), publisher=True)
    own = replace(TC, publisher=PublisherTc((5,), (), 0, (), ()), order=(SegmentType.PUBLISHER_TC,))
    assert by_tc(rule, own) == GRANTED
    assert by_tc(TcfRule((1,), publisher=True), own) == denied(Reason.PURPOSE_NOT_CONSENTED)
    assert by_tc(rule) == denied(Reason.PUBLISHER_SEGMENT_MISSING)


def test_a_vendor_must_be_allowed_on_the_same_basis() -> None:
    """Vendor 2 has consent, vendors 3 to 5 legitimate interest."""
    assert by_tc(TcfRule((1,), vendor_id=2)) == GRANTED
    assert by_tc(TcfRule((1,), vendor_id=3)) == denied(Reason.PURPOSE_NOT_CONSENTED)
    assert by_tc(TcfRule((2,), weaker_basis=True, vendor_id=3)) == GRANTED
    assert by_tc(TcfRule((2,), weaker_basis=True, vendor_id=2)) == denied(Reason.PURPOSE_NOT_CONSENTED)


def test_a_vendor_that_was_not_shown_has_nothing() -> None:
    """Where the string says who was."""
    shown = replace(TC, disclosed_vendors=Vendors(3, bits=0b1000), order=(SegmentType.DISCLOSED_VENDORS,))
    assert by_tc(TcfRule((1,), vendor_id=2), shown) == denied(Reason.VENDOR_NOT_DISCLOSED)


@pytest.mark.parametrize(
    ("kind", "consented", "interest"),
    [
        (RestrictionType.NOT_ALLOWED, False, False),
        (RestrictionType.REQUIRE_CONSENT, True, False),
        (RestrictionType.REQUIRE_LEGITIMATE_INTEREST, False, True),
    ],
)
def test_restrictions_hold_for_their_vendors(kind: RestrictionType, consented: bool, interest: bool) -> None:
    """What the publisher forbids the vendor, or demands another basis for, is not granted."""
    tc = with_core(
        purpose_consents=(2,),
        purpose_legitimate_interests=(7,),
        vendor_consents=Vendors(2, bits=0b100),
        vendor_legitimate_interests=Vendors(2, bits=0b100),
        restrictions=(Restriction(2, kind, ((2, 3),)), Restriction(7, kind, ((1, 9),))),
    )
    assert (by_tc(TcfRule((2,), vendor_id=2), tc) == GRANTED) is consented
    assert (by_tc(TcfRule((7,), weaker_basis=True, vendor_id=2), tc) == GRANTED) is interest


@pytest.mark.parametrize(
    ("changes", "now", "reason"),
    [
        ({"cmp_id": 0}, NOW, Reason.CMP_UNKNOWN),
        ({"cmp_id": 1}, NOW, Reason.CMP_UNKNOWN),
        ({"is_service_specific": False}, NOW, Reason.GLOBAL_SCOPE),
        ({}, NOW + AGE_MAX, Reason.TOO_OLD),
        ({}, NOW - timedelta(days=3), Reason.FROM_THE_FUTURE),
        (
            {"policy_version": 3, "last_updated": datetime(2023, 10, 1, tzinfo=UTC)},
            datetime(2023, 10, 2, tzinfo=UTC),
            Reason.POLICY_OUT_OF_FORCE,
        ),
        *(({"policy_version": version}, NOW, Reason.POLICY_UNKNOWN) for version in (0, 1, 6, 63)),
    ],
)
def test_strings_nobody_may_rely_on_grant_nothing(changes: dict[str, object], now: datetime, reason: Reason) -> None:
    """They decode; that they say yes is nobody's yes."""
    assert by_tc(TcfRule((1,)), with_core(**changes), now) == denied(reason)


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({"cmp_id": 2}, NOW),
        ({"policy_version": 2}, NOW),
        ({"policy_version": 5}, NOW),
        ({"policy_version": 4, "last_updated": datetime(2023, 10, 1, tzinfo=UTC)}, datetime(2023, 10, 2, tzinfo=UTC)),
        ({}, CORE.last_updated + AGE_MAX),
        ({}, CORE.last_updated - timedelta(days=1)),
    ],
)
def test_strings_at_the_edge_still_count(changes: dict[str, object], now: datetime) -> None:
    """The bounds are where they are said to be."""
    assert by_tc(TcfRule((1,)), with_core(**changes), now) == GRANTED


def test_a_string_in_gpp_counts_as_one_alone() -> None:
    """And where both come, both must grant."""
    rule = PurposeRule(tcf=TcfRule((1,)))
    yes, no = encode.tc(TC), encode.tc(with_core(purpose_consents=()))
    gpp_yes, gpp_no = encode.gpp(whole((2, TC))), encode.gpp(whole((2, with_core(purpose_consents=()))))
    assert state(rule, gpp=gpp_yes).state is State.GRANTED
    assert state(rule, gpp=gpp_no).state is State.DENIED
    assert state(rule, tc_string=yes, gpp=gpp_yes).state is State.GRANTED
    assert state(rule, tc_string=no, gpp=gpp_yes).state is State.DENIED
    assert state(rule, tc_string=yes, gpp=gpp_no).state is State.DENIED
    assert state(rule, tc_string=yes, gpp="x").state is State.DENIED


def test_canada_grants_by_its_own_rule() -> None:
    """Express consent, or implied where the rule admits it."""

    def canada(rule: TcfRule) -> State:
        return state(PurposeRule(canada=rule), gpp=encode.gpp(whole((5, CANADA)))).state

    assert canada(TcfRule((1, 5))) is State.GRANTED
    assert canada(TcfRule((2,))) is State.DENIED
    assert canada(TcfRule((2, 6), weaker_basis=True)) is State.GRANTED
    assert canada(TcfRule((1,), publisher=True)) is State.GRANTED
    assert canada(TcfRule((5,), publisher=True)) is State.DENIED
    assert canada(TcfRule((1,), vendor_id=5)) is State.GRANTED
    assert canada(TcfRule((1,), vendor_id=9)) is State.DENIED
    unknown = replace(CANADA, core=replace(CANADA.core, policy_version=3))
    assert state(PurposeRule(canada=TcfRule((1,))), gpp=encode.gpp(whole((5, unknown)))) == SignalVerdict(
        State.DENIED, "gpp", Reason.POLICY_UNKNOWN
    )
    assert state(PurposeRule(canada=TcfRule((1,))), tc_string=encode.tc(TC)) == SignalVerdict()
    assert state(PurposeRule(tcf=TcfRule((1,))), gpp=encode.gpp(whole((5, CANADA)))) == SignalVerdict()


def test_an_opt_out_in_any_us_section_is_an_objection() -> None:
    """Whatever the state; that nobody opted out grants nothing."""
    rule = PurposeRule(us_fields=("SaleOptOut", "SensitiveDataProcessing"))

    def texas(**fields: int | tuple[int, ...]) -> str:
        plain = plain_us(16)
        return encode.gpp(whole((8, plain_us(8)), (16, replace(plain, fields={**plain.fields, **fields}))))

    assert state(rule, gpp=texas()) == SignalVerdict()
    assert state(rule, gpp=texas(SaleOptOut=2)) == SignalVerdict()
    assert state(rule, gpp=texas(TargetedAdvertisingOptOut=1)) == SignalVerdict()
    objected = SignalVerdict(State.OBJECTED, "gpp", Reason.OPTED_OUT)
    assert state(rule, gpp=texas(SaleOptOut=1)) == objected
    assert state(rule, gpp=texas(SensitiveDataProcessing=(0, 2, 0, 0, 0, 1, 0, 0))) == objected


@pytest.mark.parametrize(
    ("text", "objected"), [("1YYN", True), ("1NYN", True), ("1YNN", False), ("1---", False), ("1-Y-", True)]
)
def test_us_privacy_objects_by_its_second_letter(text: str, objected: bool) -> None:
    """Alone and in GPP."""
    rule = PurposeRule(usp_opt_out_sale=True)
    gpp = encode.gpp(whole((6, UspString(Answer(text[1]), Answer(text[2]), Answer(text[3])))))
    assert (state(rule, usp=text).state is State.OBJECTED) is objected
    assert (state(rule, gpp=gpp).state is State.OBJECTED) is objected
    assert state(PurposeRule(gpc=True), usp=text, gpp=gpp) == SignalVerdict()


@pytest.mark.parametrize("value", ["0", "true", " 1", "1 ", "11", "01", "\uff11", "", None])
def test_sec_gpc_counts_when_it_is_exactly_1(value: str | None) -> None:
    """Any other value is no signal."""
    assert not decode(RawSignals(gpc=value)).gpc
    assert decode(RawSignals(gpc="1")).gpc


def test_global_privacy_control_objects_to_what_a_site_maps_it_to() -> None:
    """By default to personalizing and to training; as a header or in GPP."""
    objected = {"profile_personalization": State.OBJECTED, "model_training": State.OBJECTED}
    header = purposes_from(decode(RawSignals(gpc="1")), DEFAULT_MAPPING, NOW)
    assert {purpose: one.state for purpose, one in header.items()} == objected
    gpp = encode.gpp(whole((8, plain_us(8, gpc=True))))
    assert state(PurposeRule(gpc=True), gpp=gpp).state is State.OBJECTED
    assert state(PurposeRule(gpc=True), gpp=encode.gpp(whole((8, plain_us(8, gpc=False))))) == SignalVerdict()


@pytest.mark.parametrize("order", list(permutations(["gpc", "tc_string", "usp"])))
def test_the_strictest_signal_stands(order: tuple[str, ...]) -> None:
    """An objection over a denial over a grant, whichever came how."""
    rule = PurposeRule(tcf=TcfRule((1,)), usp_opt_out_sale=True, gpc=True)
    sent = {"gpc": "1", "tc_string": encode.tc(TC), "usp": "x"}
    expected = {"tc_string": State.GRANTED, "usp": State.DENIED, "gpc": State.OBJECTED}
    so_far: dict[str, str] = {}
    for name in order:
        so_far[name] = sent[name]
        assert state(rule, **so_far).state is max((expected[one] for one in so_far), key=list(expected.values()).index)


def test_what_deviates_denies_and_can_object() -> None:
    """A string that libraries read although no specification allows it has no yes in it, but may have a no."""
    rule = PurposeRule(tcf=TcfRule((1,)), us_fields=("SaleOptOut",))
    honest = encode.gpp(whole((2, TC), (8, plain_us(8))))
    assert state(rule, gpp=honest).state is State.GRANTED
    assert state(rule, gpp=honest + "QAA").state is State.DENIED
    assert state(rule, gpp=honest + "QAA").reason is Reason.DEVIATING
    plain = plain_us(8)
    opted_out = encode.gpp(whole((2, TC), (8, replace(plain, fields={**plain.fields, "SaleOptOut": 1}))))
    assert state(rule, gpp=opted_out + "QAA").state is State.OBJECTED
    zeros = replace(TC, publisher=PublisherTc((1,), (), 0, (), ()), order=(SegmentType.PUBLISHER_TC,))
    assert state(rule, tc_string=encode.tc(zeros)).state is State.GRANTED
    assert state(rule, tc_string=encode.tc(zeros) + "AAAAAA").reason is Reason.DEVIATING


def test_deviating_canada_grants_nothing_whatever_it_holds() -> None:
    """Its restrictions may be of kinds that do not exist."""
    bits = encode.canada_segments(CanadaString(replace(CANADA.core, restrictions=())))[0][:-12]
    undefined = f"{1:012b}" + f"{1:06b}" + "11" + encode.vendors(Vendors(9, bits=1 << 9), is_fibonacci=True)
    text = f"DBABDA~{encode.characters(bits + undefined + '1', 6)}"
    rule = TcfRule((1,), weaker_basis=True, vendor_id=9)
    assert state(PurposeRule(canada=rule), gpp=text).reason is Reason.DEVIATING


@settings(max_examples=40)
@given(gpp_strings(), tc_strings(), st.sampled_from(["", "1", "0"]), st.sampled_from(["", "1YYN", "1YNN", "?"]))
def test_every_rule_has_its_verdict(gpp: GppString, tc: TcString, gpc: str, usp: str) -> None:
    """Whatever is sent, each purpose stands somewhere, and only a TCF string can grant."""
    rules = {
        "us": PurposeRule(us_fields=("SaleOptOut",), usp_opt_out_sale=True, gpc=True),
        "eu": PurposeRule(tcf=TcfRule((1,), weaker_basis=True, vendor_id=3), gpc=True),
        "canada": PurposeRule(canada=TcfRule((1,), weaker_basis=True, vendor_id=3)),
    }
    raw = RawSignals(gpc=gpc, tc_string=encode.tc(tc), gpp=encode.gpp(gpp), usp=usp)
    verdicts = purposes_from(decode(raw), SignalMapping(rules), NOW)
    assert list(verdicts) == list(rules)
    assert verdicts["us"].state is not State.GRANTED


def test_a_mapping_that_cannot_be_meant_is_told() -> None:
    """Each mistake is a sentence that names the purpose."""
    wrong = SignalMapping(
        {
            "a": PurposeRule(us_fields=("SaleOptOut", "SaleOptout")),
            "b": PurposeRule(tcf=TcfRule(())),
            "c": PurposeRule(tcf=TcfRule((0, 25), (13,))),
            "d": PurposeRule(canada=TcfRule((1,), publisher=True, vendor_id=70_000)),
            "e": PurposeRule(tcf=TcfRule((1,), (2,), vendor_id=1), us_fields=("SaleOptOut",)),
        }
    )
    assert [one.partition(":")[0] for one in problems(wrong)] == ["a", "b", "c", "c", "d", "d"]
    assert problems(DEFAULT_MAPPING) == ()


def test_problems_are_told_by_signal() -> None:
    """For counters and logs: codes and places, no strings."""
    found = decode(RawSignals(tc_string=" ", gpp=encode.gpp(whole((8, plain_us(8)))) + "QAA", usp="1YNN")).problems
    assert {name: one.code for name, one in found.items()} == {"tc_string": Code.ALPHABET, "gpp": Code.TRAILING_DATA}
    assert all(isinstance(one, Problem) for one in found.values())
    assert "secret" not in repr(RawSignals(gpc="secret", tc_string="secret", gpp="secret", usp="secret"))
