"""The learning loop over gRPC: replay, fit, register, activate; and RankLens by its protocol."""

import hashlib
import itertools
import random
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest

from learning.compare import contender, figures, list_models
from learning.dataset import replay_examples
from learning.errors import LearningError
from learning.pipeline import Services, TrainRequest, train
from learning.ranklens import Click, Film, Ranking, RankLens, RankLensEvents, RankLensRequest, RankLensSite
from learning.ranklens.events import Event, Moment, item_from
from learning.train import TrainPlan
from services.chassis import rpc_client
from services.chassis.errors import Kind, ServiceError
from services.chassis.signing import is_signed, signing_key
from services.decision.domain.release import signed_text
from services.decision.domain.trial_rows import GOLDEN_COUNT
from tests.integration.learning.platform import Platform

Channels = dict[str, grpc.aio.Channel]
SITE = RankLensSite("films", "films_ranker", ("profile", "measurement"))
PLAN = TrainPlan(params={"min_data_in_leaf": 5}, rounds=10)
# Item n is liked with probability n / 12.
ITEMS = [str(n) for n in range(1, 11)]
STEP_MS = 1000
CLICK_AFTER_MS = 5000
KEY = signing_key("models", b"model key of this test, of the test alone")


def sign(version: str) -> bytes:
    """As the site's model key signs."""
    return KEY.sign(signed_text(version))


def invented(rankings_count: int, seed: int = 1) -> list[Event]:
    """Rankings of six films a second; answers five seconds after."""
    chance = random.Random(seed)
    events: list[Event] = [Film(0, item_from(item, [])) for item in ITEMS[:-1]]
    for number in range(rankings_count):
        at_ms, name = 10_000 + STEP_MS * (number // 2), f"ranking-{number}"
        shown = chance.sample(ITEMS, 6)
        events.append(Ranking(at_ms, name, f"user-{number % 9}", tuple(shown)))
        events += [
            Click(at_ms + CLICK_AFTER_MS, f"{name}-{item}", name, f"user-{number % 9}", item)
            for item in shown
            if chance.random() < int(item) / 12
        ]
    return events


def boundary(events: list[Event], rankings: int) -> int:
    """The time of the first ranking after so many."""
    return [event for event in events if isinstance(event, Ranking)][rankings].at_ms


async def test_ranklens_is_run_by_its_protocol(platform: Platform, channels: Channels) -> None:
    """Everybody grants everything, only what is strictly earlier is visible, every answered ranking is judged once."""
    events = invented(160)
    at = boundary(events, 120)
    told: list[str] = []
    run = RankLens(
        channels,
        SITE,
        RankLensEvents(events),
        RankLensRequest(at, at, plan=PLAN),
        sign=sign,
        progress=lambda step, *_: told.append(step),
    )
    report = await run.run()
    assert platform.granted == {f"user-{n}": 2 for n in range(9)}
    assert platform.items == set(ITEMS)
    judged = [e for e in RankLensEvents(events).rankings if e.at_ms >= at and RankLensEvents(events).liked_in(e)]
    assert report.rankings == len(judged)
    assert report.ndcg["ndcg@5"] > 0.6
    assert set(report.as_dict()) == {"ndcg@5", "ndcg@10", "rankings", "baselines"}
    assert report.training.counts.decisions == 120
    assert {"consent", "replay", "fit", "register"} <= set(told)
    exposures = [event for event in platform.tracked if event.type == "exposure"]
    assert len(exposures) == 160
    assert all(event.decision_id for event in platform.tracked)


async def reported(channels: Channels) -> dict[str, Any]:
    """What a run on sixty rankings reports."""
    events = invented(60)
    at = boundary(events, 40)
    return (
        await RankLens(channels, SITE, RankLensEvents(events), RankLensRequest(at, at, plan=PLAN), sign=sign).run()
    ).as_dict()


async def test_slow_answers_change_no_figure(
    platform: Platform, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third call is answered too late, whether or not it had its effect: each is made again."""
    monkeypatch.setattr(rpc_client, "PAUSE_S", 0.0)
    undisturbed = await reported(channels)
    platform.__init__()  # type: ignore[misc]
    calls = itertools.count(1)
    platform.fails = lambda _: next(calls) % 3 == 0
    assert await reported(channels) == undisturbed
    assert next(calls) > 30


@pytest.mark.parametrize(
    ("method", "after"),
    [("RecordDecisions", 3), ("RecordDecisions", 24), ("Track", 3), ("Track", 24), ("UpsertItems", 0)],
)
async def test_a_run_that_broke_off_goes_on_to_the_same_figures(
    platform: Platform, channels: Channels, monkeypatch: pytest.MonkeyPatch, method: str, after: int
) -> None:
    """Whichever call ended it: what is there already changes nothing, and nothing later is seen by what is missing."""
    monkeypatch.setattr(rpc_client, "TRIES_MAX", 1)
    undisturbed = await reported(channels)
    platform.__init__()  # type: ignore[misc]
    calls = itertools.count(1)
    platform.fails = lambda called: called == method and next(calls) > after
    with pytest.raises(ServiceError, match=method):
        await reported(channels)
    platform.fails = lambda _: False
    assert await reported(channels) == undisturbed


async def test_what_happens_after_a_ranking_changes_none_of_its_features(
    platform: Platform, channels: Channels
) -> None:
    """Shuffling who clicked what afterwards leaves the features of every earlier ranking as they were, to the byte."""
    events = invented(100)
    at = boundary(events, 60)
    later = [e for e in events if isinstance(e, Click) and e.at_ms >= at]
    items = [e.item_id for e in later]
    random.Random(5).shuffle(items)
    shuffled = {
        e.click_id: Click(e.at_ms, e.click_id, e.ranking_id, e.user, item) for e, item in zip(later, items, strict=True)
    }
    changed = [shuffled.get(e.click_id, e) if isinstance(e, Click) else e for e in events]
    logged = []
    for sequence in (events, changed):
        platform.__init__()  # type: ignore[misc]
        await RankLens(
            channels, SITE, RankLensEvents(sequence), RankLensRequest(at, at + 10**9, plan=PLAN), sign=sign
        ).run()
        logged.append(
            {
                name: made.inputs.matrix
                for name, made in platform.decisions.items()
                if made.decided_at.ToMilliseconds() <= at
            }
        )
    assert len(logged[0]) > 60
    assert logged[0] == logged[1]


class Hasty(RankLens):
    """A run that lets a ranking see what happens in its own moment."""

    async def _take(self, moment: Moment) -> None:
        await super()._take(Moment(moment.at_ms, moment.films, (), moment.clicks))
        await super()._take(Moment(moment.at_ms, (), moment.rankings, ()))


async def test_seeing_the_same_moment_is_caught(platform: Platform, channels: Channels) -> None:
    """The platform that stands in has teeth: clicks tracked before a ranking of their own moment end the run."""
    events = invented(30)
    at = boundary(events, 20)
    with pytest.raises(ServiceError) as raised:
        await Hasty(channels, SITE, RankLensEvents(events), RankLensRequest(at, at, plan=PLAN), sign=sign).run()
    assert raised.value.kind is Kind.INTERNAL


async def test_a_refused_event_ends_the_run(platform: Platform, channels: Channels) -> None:
    """Figures over events that were not all taken in would not be the protocol's."""
    platform.refuse_track = True
    events = invented(30)
    at = boundary(events, 20)
    with pytest.raises(LearningError, match="DROPPED_NO_CONSENT"):
        await RankLens(channels, SITE, RankLensEvents(events), RankLensRequest(at, at, plan=PLAN), sign=sign).run()


async def test_training_registers_what_it_learned(platform: Platform, channels: Channels) -> None:
    """The file arrives whole, under its hash, with its columns; it is activated only where that was asked for."""
    events = invented(80)
    at = boundary(events, 60)
    await RankLens(channels, SITE, RankLensEvents(events), RankLensRequest(at, at, plan=PLAN), sign=sign).run()
    platform.active = ""
    services = Services.over(channels["feedback"], channels["features"], channels["decision"], sign)
    report = await train(services, TrainRequest(name="films_ranker", plan=PLAN, activate=False))
    header = platform.headers[-1]
    assert platform.active == ""
    assert hashlib.sha256(platform.model).hexdigest() == header.sha256 == report.sha256
    assert list(header.columns) == ["clicks"]
    public_key = KEY.public_key().public_bytes_raw()
    assert is_signed(signed_text(f"films_ranker@{header.sha256}"), header.signature, public_key)
    assert len(header.golden_scores) == GOLDEN_COUNT
    assert header.metrics["rows"] == report.rows_count
    assert np.isfinite(report.parity_difference_max)
    answered = {event.decision_id for event in platform.tracked if event.type == "click"}
    assert report.as_dict()["counts"]["used"] == len(answered)


async def test_nothing_to_learn_from_registers_nothing(platform: Platform, channels: Channels) -> None:
    """Without an answered decision training says so, and the model that decides stays."""
    services = Services.over(channels["feedback"], channels["features"], channels["decision"], sign)
    with pytest.raises(LearningError, match="No decision"):
        await train(services, TrainRequest(name="films_ranker"))
    assert platform.headers == []


async def browsed(platform: Platform, channels: Channels) -> tuple[Services, list[int]]:
    """A hundred and sixty answered rankings on the platform, and no model; their times."""
    events = invented(160)
    at = boundary(events, 150)
    await RankLens(channels, SITE, RankLensEvents(events), RankLensRequest(at, at, plan=PLAN), sign=sign).run()
    platform.active = ""
    platform.models.clear()
    services = Services.over(channels["feedback"], channels["features"], channels["decision"], sign)
    return services, [made.decided_at.ToMilliseconds() for made in platform.decisions.values()]


def asked(until_ms: int | None = None, *, activate: bool | None = None, is_coarse: bool = False) -> TrainRequest:
    """A training; a coarse model tells hardly more than two kinds of films apart."""
    until = None if until_ms is None else datetime.fromtimestamp(until_ms / 1000, UTC)
    params = {"min_data_in_leaf": 5, **({"max_bin": 3, "num_leaves": 2} if is_coarse else {})}
    plan = TrainPlan(params=params, rounds_max=20, rounds_min=10)
    return TrainRequest(name="films_ranker", until=until, plan=plan, activate=activate)


async def test_the_first_model_of_a_name_is_activated(platform: Platform, channels: Channels) -> None:
    """There is nothing to compare it with; the same one again is what decides already."""
    services, _ = await browsed(platform, channels)
    for _ in range(2):
        report = await train(services, asked())
        assert (report.active, report.compared, platform.active) == (True, None, report.sha256)


@pytest.mark.parametrize("is_better", [True, False])
async def test_a_model_that_is_worse_than_the_active_one_waits_to_be_activated(
    platform: Platform, channels: Channels, is_better: bool
) -> None:
    """Both are scored on decisions that neither had seen; whoever wants it all the same says so."""
    services, times = await browsed(platform, channels)
    first = await train(services, asked(until_ms=times[100], is_coarse=is_better))
    second = await train(services, asked(is_coarse=not is_better))
    assert second.compared is not None
    assert second.compared.active_version == first.model_version
    assert 20 <= second.compared.decisions <= 32
    assert second.compared.new is not None
    assert second.compared.active is not None
    assert (second.compared.new > second.compared.active) is is_better
    assert second.active is is_better
    assert platform.active == (second if is_better else first).sha256
    forced = await train(services, asked(is_coarse=not is_better, activate=True))
    assert (forced.active, forced.compared, platform.active) == (True, None, second.sha256)


async def test_a_model_that_cannot_be_compared_waits_to_be_activated(platform: Platform, channels: Channels) -> None:
    """What the active model was trained on says nothing about which of the two is better."""
    services, _ = await browsed(platform, channels)
    first = await train(services, asked())
    second = await train(services, asked(is_coarse=True))
    assert second.compared is not None
    assert (second.compared.decisions, second.compared.new, second.active) == (0, None, False)
    assert platform.active == first.sha256 != second.sha256


async def test_registered_models_are_scored_on_the_same_decisions(platform: Platform, channels: Channels) -> None:
    """As the decision service loads them; how many each may have been trained on is told."""
    services, times = await browsed(platform, channels)
    await train(services, asked(until_ms=times[100]))
    await train(services, asked(is_coarse=True))
    examples = await replay_examples(services.feedback, columns=("clicks",), feature_set="features-1")
    newest = examples.tail(len(examples.groups) - 40)
    models = await list_models(services.release)
    told = figures([await contender(services.release, model, 1) for model in models], newest)
    assert [one.seen_count for one in told] == [0, 40]
    assert told[0].value is not None
    assert told[1].value is not None
    assert told[0].value > told[1].value
