"""The demo's verdict: it holds only when everything did, and the summary says what is promised."""

from dataclasses import replace

import numpy as np
import pytest

from cli.demo.findings import Findings
from cli.demo.log import ClickRates, Log, Logged, click_rates
from cli.demo.simulator import Consent, Shop, ShopItem, Visitor
from cli.demo.statistics import Rate


def rate(value: float) -> Rate:
    return Rate(value, 0.01, 50)


def sound() -> Findings:
    """Findings of a run in which everything held."""
    return Findings(
        seed=1,
        quick=False,
        decisions=100,
        replayed_identical=100,
        no_consent=10,
        no_consent_defaults=10,
        revoked=8,
        revoked_defaults=8,
        with_consent=50,
        ranked=49,
        rates=ClickRates(ranked=rate(0.45), holdout=rate(0.15), optimum=rate(0.52)),
        latency_ms={"p50": 5.0, "p99": 20.0},
    )


def test_a_run_in_which_everything_held_holds() -> None:
    """All checks hold and the verdict follows."""
    assert sound().held
    assert all(check.held for check in sound().checks())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replayed_identical", 99),
        ("no_consent_defaults", 9),
        ("revoked_defaults", 7),
        ("ranked", 20),
        ("unlogged", 6),
        ("rates", ClickRates(ranked=rate(0.15), holdout=rate(0.15), optimum=rate(0.2))),
        ("rates", ClickRates(ranked=rate(0.30), holdout=rate(0.15), optimum=rate(0.52))),
    ],
)
def test_a_run_in_which_one_thing_did_not_hold_does_not_hold(field: str, value: object) -> None:
    """Each check counts."""
    assert not replace(sound(), **{field: value}).held  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["decisions", "no_consent", "revoked", "with_consent"])
def test_nothing_seen_is_nothing_shown(field: str) -> None:
    """A check without cases does not hold: zero of zero proves nothing."""
    empty = {
        "decisions": {"decisions": 0, "replayed_identical": 0},
        "no_consent": {"no_consent": 0, "no_consent_defaults": 0},
        "revoked": {"revoked": 0, "revoked_defaults": 0},
        "with_consent": {"with_consent": 0, "ranked": 0},
    }[field]
    assert not replace(sound(), **empty).held  # type: ignore[arg-type]


def test_a_quick_run_need_not_measure_a_gain_but_must_hold_the_rest() -> None:
    """Too few visitors excuse a wide interval and nothing else."""
    rates = ClickRates(ranked=rate(0.2), holdout=rate(0.2), optimum=rate(0.5))
    assert replace(sound(), quick=True, rates=rates).held
    assert not replace(sound(), quick=True, revoked_defaults=7).held


def test_the_summary_has_what_is_promised() -> None:
    """Keys and shapes that programs rely on."""
    summary = sound().summary()
    assert list(summary) == [
        "decisions",
        "replayed_identical",
        "no_consent_defaults",
        "revoked_defaults",
        "click_rate",
        "latency_ms",
        "ranklens",
    ]
    assert set(summary["click_rate"]) == {"ranked", "holdout", "optimum"}
    assert set(summary["click_rate"]["ranked"]) == {"value", "low", "high"}


def test_click_rates_are_of_the_arms_and_of_what_was_asked_for() -> None:
    """Each decision counts in the arm that the log says, with clicks on what it showed and nothing else."""
    item = ShopItem("kite", "toys", "fjord", 38.0)
    tote = ShopItem("tote", "bags", "fjord", 18.0)
    shop = Shop([item, tote], np.random.default_rng(1))
    visitors = [Visitor(n, Consent.GIVEN, False, {"toys": 1.0, "bags": 0.0}, {"fjord": 0.0}, 0.0) for n in range(4)]
    log = Log(
        decisions={
            "a": Logged("a", "home_hero", False, ("kite", "tote")),
            "b": Logged("b", "home_hero", False, ("kite", "tote")),
            "c": Logged("c", "home_hero", True, ("tote", "kite")),
            "d": Logged("d", "home_hero", True, ("tote", "kite")),
            "other": Logged("other", "home_hero", False, ("kite",)),
        },
        clicked={"a": {"kite", "tote", "lantern"}, "c": {"tote"}, "other": {"kite"}},
    )
    rates = click_rates(log, shop, dict(zip("abcd", visitors, strict=True)))
    assert rates.ranked.value == pytest.approx(2 / 4)
    assert rates.holdout.value == pytest.approx(1 / 4)
    best = [shop.expected_click_rate(v, shop.best_slate(v, 2)) for v in visitors[:2]]
    assert rates.optimum.value == pytest.approx(sum(best) / 2)
