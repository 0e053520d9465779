"""What a site may declare about consent, and what its policy version is the hash of."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.chassis.errors import ServiceError
from services.chassis.ids import content_hash
from services.consent import wire
from services.consent.domain.declaring import Declaration, content, declare
from services.consent.domain.notices import Notice
from services.consent.domain.policy import Policy
from services.consent.domain.purposes import CONSENT, LEGITIMATE_INTEREST, Purpose
from services.consent.domain.regimes import Jurisdiction, Regime
from services.consent.domain.signals.mapping import PurposeRule, TcfRule

RETIRED_AT = datetime(2026, 6, 1, tzinfo=UTC)
RULE = PurposeRule(TcfRule((1, 3), (1,), vendor_id=7), TcfRule((2,), weaker_basis=True), ("SaleOptOut",), True, True)


def purpose(name: str, version: int = 1, basis: str = CONSENT) -> Purpose:
    return Purpose(name, f"what {name} is for", basis, "owner", 30, version)


NOTICE = Notice("n1", ("en", "de-AT"), ("ads",))
EU, CA = Jurisdiction("eu", Regime.OPT_IN, is_default=True), Jurisdiction("us-ca", Regime.OPT_OUT, ("measurement",))
POLICY = Policy("policy1", {name: purpose(name, version=2) for name in ("ads", "measurement")})
FULL = replace(POLICY, notices={"n1": NOTICE}, jurisdictions={"eu": EU, "us-ca": CA})


def test_controller_stands_until_another_is_declared() -> None:
    """Its name is part of what people were told: another one is another version."""
    named = declared_on(POLICY, Declaration([], controller="a shop"))
    again = declared_on(named, Declaration([purpose("ads", version=3)]))
    other = declared_on(named, Declaration([], controller="another shop"))
    assert (named.controller, again.controller, other.controller) == ("a shop", "a shop", "another shop")
    assert len({content(one) for one in (POLICY, named, other)}) == 3


def declared_on(policy: Policy, declared: Declaration) -> Policy:
    return declare(policy, declared, content_hash)


def test_what_is_declared_is_added_and_never_taken_away() -> None:
    """What was declared stays, whoever publishes less."""
    after = declared_on(FULL, Declaration([purpose("fun")], [Notice("n2", ("en",), ("fun",))]))
    assert sorted(after.purposes) == ["ads", "fun", "measurement"]
    assert sorted(after.notices) == ["n1", "n2"]
    assert sorted(after.jurisdictions) == ["eu", "us-ca"]
    assert declared_on(POLICY, Declaration([purpose("ads", version=3)])).purposes["ads"].version == 3


@pytest.mark.parametrize(
    ("declared", "field", "text"),
    [
        (Declaration([purpose("ads", version=1)]), "purposes[0].version", "below 2"),
        (Declaration([purpose("fun"), purpose("fun")]), "purposes[1].id", "twice"),
        (
            Declaration([purpose("ads", version=2, basis=LEGITIMATE_INTEREST)]),
            "purposes[0].legal_basis",
            "raise the version to 3",
        ),
        (Declaration([purpose(f"p{number}") for number in range(63)]), "purposes", "it can have 64"),
        (
            Declaration([replace(purpose("fun"), signals=PurposeRule(us_fields=("Typo",)))]),
            "purposes[0].signals",
            "no US section has a field Typo",
        ),
        (
            Declaration([replace(purpose("fun"), signals=PurposeRule(tcf=TcfRule(())))]),
            "purposes[0].signals",
            "every string would grant it",
        ),
        (Declaration([], [Notice("n2", ("en",), ("ads", "fun"))]), "notices[0].purposes[1]", "ads, measurement"),
        (Declaration([], [NOTICE, NOTICE]), "notices[1].version", "twice"),
        (Declaration([], [Notice("n2", ("English (US)",), ("ads",))]), "notices[0].languages[0]", "BCP 47"),
        (Declaration([], [replace(NOTICE, purposes=("measurement",))]), "notices[0].purposes", "version of its own"),
        (Declaration([], [replace(NOTICE, languages=("en",))]), "notices[0].languages", "lack de-AT"),
        (Declaration([], [], [EU, EU]), "jurisdictions[1].id", "twice"),
        (Declaration([], [], [replace(CA, is_default=True)]), "jurisdictions", "eu and us-ca are default"),
        (
            Declaration([], [], [replace(CA, opt_in_purposes=("fun",))]),
            "jurisdictions[0].opt_in_purposes[0]",
            "no declared purpose",
        ),
        (
            Declaration([], [], [replace(CA, gpc_objects_to=("fun",))]),
            "jurisdictions[0].gpc_objects_to[0]",
            "no declared purpose",
        ),
        (Declaration([], [], [replace(CA, regime=Regime.UNSPECIFIED)]), "jurisdictions[0].regime", "REGIME_OPT_IN"),
        (
            Declaration([purpose("count", basis=LEGITIMATE_INTEREST)], [], [replace(CA, opt_in_purposes=("count",))]),
            "jurisdictions[0].opt_in_purposes[0]",
            "needs consent nowhere",
        ),
    ],
)
def test_a_declaration_that_contradicts_itself_or_what_people_agreed_to(
    declared: Declaration, field: str, text: str
) -> None:
    """Each is refused with the field and the remedy."""
    with pytest.raises(ServiceError, match=text) as caught:
        declared_on(FULL, declared)
    assert caught.value.reason == "PURPOSES_INVALID"
    assert caught.value.problems[0].field == field


UNREAD = replace(
    FULL,
    version=content_hash(content(FULL)),
    purposes={"ads": FULL.purposes["ads"]},
    unread_purposes={"measurement": FULL.purposes["measurement"]},
    notices={},
    unread_notices=frozenset({"n1"}),
)
MEASUREMENT = FULL.purposes["measurement"]


@pytest.mark.parametrize(
    ("declared", "field", "text"),
    [
        (Declaration([replace(MEASUREMENT, version=1)], [NOTICE]), "purposes[0].version", "below 2"),
        (Declaration([replace(MEASUREMENT, legal_basis=LEGITIMATE_INTEREST)], [NOTICE]), "purposes[0].legal_basis",
         "raise the version"),
        (Declaration([], [NOTICE]), "purposes", "lack measurement"),
        (Declaration([MEASUREMENT], []), "notices", "n1 cannot be read"),
        (Declaration([MEASUREMENT], [replace(NOTICE, purposes=("ads", "measurement"))]), "notices", "as it was first"),
        (Declaration([MEASUREMENT, purpose("fun")], [NOTICE]), "notices", "as it was first"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_neither_lost_nor_changed(declared: Declaration, field: str, text: str) -> None:
    """While its row is broken a purpose keeps its version and basis, and a notice what it told."""
    with pytest.raises(ServiceError, match=text) as caught:
        declared_on(UNREAD, declared)
    assert caught.value.problems[0].field == field


def test_what_cannot_be_read_can_be_declared_as_it_was() -> None:
    """Then the version is the same, and holds all of it."""
    after = declared_on(UNREAD, Declaration([MEASUREMENT], [NOTICE]))
    assert after == replace(FULL, version=UNREAD.version)


def test_a_notice_can_be_retired() -> None:
    """That nobody is shown it any more changes nothing for those who were."""
    after = declared_on(FULL, Declaration([], [replace(NOTICE, retired_at=RETIRED_AT)]))
    assert after.notices["n1"].retired_at == RETIRED_AT


def test_the_content_of_a_policy_does_not_hang_on_its_order() -> None:
    """The policy version is a hash of what is declared, not of how it was written."""
    other = Policy(
        "",
        dict(reversed(list(FULL.purposes.items()))),
        {"n1": replace(NOTICE, languages=("de-AT", "en"))},
        {"us-ca": CA, "eu": EU},
    )
    assert content(FULL) == content(other)


def test_a_site_that_declares_only_purposes_keeps_its_policy_version() -> None:
    """These bytes were hashed before there was anything else to declare; grants name that version."""
    assert content(POLICY) == (
        b"ads\0what ads is for\0consent\0owner\x0030\x002\0\0"
        b"measurement\0what measurement is for\0consent\0owner\x0030\x002"
    )


def test_everything_that_is_declared_is_part_of_the_version() -> None:
    """Whatever could change a verdict changes the version that decisions echo."""
    ads = FULL.purposes["ads"]
    variants = [
        FULL,
        replace(FULL, notices={}),
        replace(FULL, notices={"n1": replace(NOTICE, retired_at=RETIRED_AT)}),
        replace(FULL, jurisdictions={"eu": EU}),
        replace(FULL, jurisdictions={"eu": EU, "us-ca": replace(CA, gpc_objects_to=("ads",))}),
        replace(FULL, purposes={**FULL.purposes, "ads": replace(ads, personalizes=True)}),
        replace(FULL, purposes={**FULL.purposes, "ads": replace(ads, signals=RULE)}),
        replace(FULL, purposes={**FULL.purposes, "ads": replace(ads, signals=PurposeRule())}),
    ]
    assert len({content(one) for one in variants}) == len(variants)


def test_what_is_kept_is_what_was_declared() -> None:
    """Rules, notices and jurisdictions come back from the database as they were sent."""
    assert wire.decode_rule(wire.encode_rule(RULE)) == RULE
    assert wire.decode_rule(wire.encode_rule(PurposeRule())) == PurposeRule()
    retired = replace(NOTICE, url="https://example.org/n1", retired_at=RETIRED_AT)
    assert [wire.decode_notice(wire.encode_notice(one)) for one in (NOTICE, retired)] == [NOTICE, retired]
    assert [wire.decode_jurisdiction(wire.encode_jurisdiction(one)) for one in (EU, CA)] == [EU, CA]
