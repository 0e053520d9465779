"""A replica follows the database, swaps whole states, and keeps what it has when something is wrong."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest

from services.chassis import alarms
from services.chassis.alarms import Alarm
from services.chassis.deadline import deadline_scope
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition
from services.decision.domain.catalog import ItemColumns
from services.decision.domain.plan import CompiledSite, compile_site
from services.decision.domain.release import DeclaredItem, DeclaredSite, Standing
from services.decision.domain.site import Item
from services.decision.domain.vocabulary import Exclusion
from services.decision.handlers import refresh as refreshing
from services.decision.handlers.rankers import Rankers, Vetting
from services.decision.handlers.refresh import Refresher
from services.decision.rule_trial import without_slow_rules
from tests.unit.decision.fakes import DEAD, FakeRanker
from tests.unit.decision.registry import PUBLIC_KEY, Loader, Registry, new_model
from tests.unit.decision.test_rules import DOUBLING, OVER_BUDGET
from tests.unit.decision.world import FEATURE_SET, ITEMS, PLACEMENT, POLICY, columns, site
from tests.waiting import eventually

MODEL = new_model("first")


class World:
    """Every port of the refresher: what stands in the database, and what features has."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.registry.decides(MODEL)
        self.loader = Loader()
        self.now = replace(self.registry.standing(), site_version="site-1", catalog_version=1)
        self.items: list[Item] = list(ITEMS)
        self.snapshot: ItemColumns | None = columns()
        self.site: CompiledSite | None = site()
        self.before: dict[str, CompiledSite | None] = {}
        self.has_unread = False
        self.down = False
        self.loads = 0
        # Features answers once this is set.
        self.features_answers = asyncio.Event()
        self.features_answers.set()
        self.asked_features = asyncio.Event()

    async def standing(self) -> Standing:
        if self.down:
            raise DEAD
        return self.now

    async def load_site(self, site_version: str) -> CompiledSite | None:
        self.loads += 1
        return self.site if site_version == self.now.site_version else self.before[site_version]

    async def changed_since(self, catalog_version: int) -> tuple[int, list[Item]]:
        return self.now.catalog_version, self.items

    async def newest(self, feature_set_version: str, item_width: int, held: ItemColumns | None) -> ItemColumns | None:
        if self.down:
            raise DEAD
        snapshot = self.snapshot
        self.asked_features.set()
        await self.features_answers.wait()
        return None if snapshot is held else snapshot


class Sites:
    """handlers.ports.SiteStore of a world."""

    def __init__(self, world: World) -> None:
        self.load = world.load_site
        self._world = world

    async def before(self, site_version: str) -> list[str]:
        return list(self._world.before)

    async def data(self, site_version: str) -> bytes:
        return b""

    async def apply(self, declared: DeclaredSite) -> bool:
        return False


class Catalogs:
    """handlers.ports.CatalogStore of a world."""

    def __init__(self, world: World) -> None:
        self.changed_since = world.changed_since
        self._world = world

    @property
    def has_unread(self) -> bool:
        return self._world.has_unread

    async def at(self, item_ids: Sequence[str], catalog_version: int) -> list[Item | None]:
        return []

    async def page(self, *, after: str = "") -> list[DeclaredItem]:
        return []

    async def upsert(self, items: Sequence[DeclaredItem]) -> tuple[int, LogPosition]:
        return 0, ORIGIN


def refresher(world: World) -> Refresher:
    return Refresher(
        standing=world,
        sites=Sites(world),
        catalog=Catalogs(world),
        rankers=Rankers(world.registry, Vetting(world.registry, world.loader, [PUBLIC_KEY])),
        columns=world,
        offered_max=100,
    )


async def test_a_replica_takes_over_what_stands() -> None:
    """Site, items, columns and model decide together."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    await replica.refresh_columns()
    serving = replica.serving()
    assert serving.compiled is not None
    assert len(serving.catalog.items) == len(ITEMS)
    assert serving.ranker("ranker") is not None
    assert serving.rows is not None
    assert len(serving.offers[PLACEMENT.id].item_ids) == len(ITEMS)


async def test_nothing_new_loads_nothing() -> None:
    """A poll that finds everything as it was costs one read, and the state is the very same object."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    before = replica.serving()
    await replica.refresh()
    assert world.loads == 1
    assert replica.serving() is before


async def test_a_change_leaves_running_calls_their_state() -> None:
    """A new state is another object: a call that began before goes on with the old one."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    before = replica.serving()
    world.items = [replace(ITEMS[0], retired=True), Item("new", variants=("a",))]
    world.now = replace(world.now, catalog_version=2)
    await replica.refresh()
    after = replica.serving()
    assert (len(before.catalog.items), len(after.catalog.items)) == (6, 7)
    assert after.catalog.items[0].retired
    assert not before.catalog.items[0].retired


async def test_a_model_that_cannot_be_loaded_leaves_the_one_before() -> None:
    """Better yesterday's model than none."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    bad = new_model("bad")
    world.loader.problems[bad.onnx] = "is no model"
    world.registry.decides(bad)
    world.now = replace(world.now, active_models=frozenset({(bad.name, bad.sha256)}))
    await replica.refresh()
    ranker = replica.serving().ranker("ranker")
    assert ranker is not None
    assert ranker.version == MODEL.version


async def test_a_model_of_another_feature_set_does_not_score() -> None:
    """Columns that mean something else are no features."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    serving = replica.serving()
    stranger = FakeRanker()
    stranger.feature_set_version = "other"
    assert replace(serving, rankers={"ranker": stranger}).ranker("ranker") is None


async def test_columns_of_another_feature_set_are_not_used() -> None:
    """A snapshot that came for the site before must not shift columns."""
    world = World()
    world.snapshot = replace(columns(), feature_set_version="other")
    replica = refresher(world)
    await replica.refresh()
    await replica.refresh_columns()
    assert replica.serving().rows is None


async def test_a_rule_that_raises_excludes_and_the_refresh_goes_on() -> None:
    """An item-only rule is asked when the catalog is judged: it must not end the loop that everything stands on."""
    world = World()
    world.items = [Item("a", variants=("small",)), Item("b", variants=("small",))]
    world.site = site(policy=replace(POLICY, eligibility=OVER_BUDGET))
    replica = refresher(world)
    await replica.refresh()
    view = replica.serving().views[PLACEMENT.id]
    assert view.exclusions.tolist() == [Exclusion.RULE_ERROR, Exclusion.INELIGIBLE, Exclusion.UNKNOWN_ITEM]


async def test_a_stopped_rule_is_an_alarm_until_another_site_decides() -> None:
    """Whoever looks at the status is told, and told when it is over."""
    world = World()
    world.site = without_slow_rules(site(policy=replace(POLICY, eligibility=DOUBLING)))
    replica = refresher(world)
    await replica.refresh()
    assert Alarm.RULE_STOPPED in alarms.standing()
    world.site = compile_site(replace(site().site, version="site-2"), FEATURE_SET)
    world.now = replace(world.now, site_version="site-2")
    await replica.refresh()
    assert Alarm.RULE_STOPPED not in alarms.standing()


async def test_a_site_that_cannot_be_read_leaves_the_one_before_also_at_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also at a start: the newest that can be read decides, which is an alarm until the right one can be read again."""
    monkeypatch.setattr(refreshing, "AGAIN_S", 0.0)
    world = World()
    world.now = replace(world.now, site_version="site-3")
    mended, world.site = compile_site(replace(site().site, version="site-3"), FEATURE_SET), None
    world.before = {"site-2": None, "site-1": site()}
    replica = refresher(world)
    await replica.refresh()
    assert decides(replica) == "site-1"
    assert Alarm.STORED_UNUSABLE in alarms.standing()
    world.site = mended
    await replica.refresh()
    assert decides(replica) == "site-3"
    assert Alarm.STORED_UNUSABLE not in alarms.standing()


async def test_a_row_that_was_mended_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else moved: no version says that an item can be read now."""
    world = World()
    replica = refresher(world)
    world.has_unread = True
    await replica.refresh()
    world.items = [Item("mended", variants=("a",))]
    await replica.refresh()
    assert "mended" not in replica.serving().catalog.rows
    await replica.refresh_unread()
    assert "mended" in replica.serving().catalog.rows
    world.items = [Item("later", variants=("a",))]
    monkeypatch.setattr("time.monotonic", lambda: float("inf"))
    await replica.refresh()
    assert "later" in replica.serving().catalog.rows


async def test_nothing_that_is_stored_keeps_a_replica_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever taking it over raises: it goes on with what it had, says so, and tries again later."""
    world, tries = World(), itertools.count()

    def broken(*_: object, **__: object) -> NoReturn:
        next(tries)
        raise ZeroDivisionError

    replica = refresher(world)
    with monkeypatch.context() as patched:
        patched.setattr(refreshing, "serving_of", broken)
        await replica.refresh()
        await replica.refresh()
    assert next(tries) == 1
    assert Alarm.STORED_UNUSABLE in alarms.standing()
    await replica.refresh_unread()
    assert decides(replica) == "site-1"
    assert Alarm.STORED_UNUSABLE not in alarms.standing()


def decides(replica: Refresher) -> str:
    """The version of the site that decides."""
    compiled = replica.serving().compiled
    return "" if compiled is None else compiled.site.version


async def test_an_outage_keeps_what_there_is() -> None:
    """The database or features away: the replica goes on with what it holds."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    before = replica.serving()
    world.down = True
    for refresh in (replica.refresh, replica.refresh_columns):
        with pytest.raises(ServiceError):
            await refresh()
    assert replica.serving() is before


async def test_waiting_for_columns_ends_when_they_stand_there() -> None:
    """The snapshot is asked for until it stands at the position, or the deadline comes."""
    world = World()
    replica = refresher(world)
    assert await replica.await_columns(LogPosition(1, 5, 9), ORIGIN) == "columns-1"
    with deadline_scope(0.05), pytest.raises(ServiceError) as caught:
        await replica.await_columns(LogPosition(1, 5, 10), ORIGIN)
    assert caught.value.kind is Kind.DEADLINE


async def test_newer_columns_are_looked_up_as_the_held_ones_were() -> None:
    """The same items in the same order: only the values are others."""
    world = World()
    replica = refresher(world)
    await replica.refresh()
    await replica.refresh_columns()
    held = replica.serving().rows
    assert held is not None
    world.snapshot = replace(held.columns, version="columns-2", rows=held.columns.rows * 2)
    await replica.refresh_columns()
    rows = replica.serving().rows
    assert rows is not None
    assert rows.places is held.places
    np.testing.assert_array_equal(rows.of(np.array([2])), held.of(np.array([2])) * 2)


async def test_features_that_hang_do_not_hold_up_what_is_applied() -> None:
    """A kill switch or a model counts within a second, also while nobody answers for item columns."""
    world = World()
    world.features_answers.clear()
    replica = refresher(world)
    running = asyncio.create_task(replica.run())
    await world.asked_features.wait()
    world.items = [Item("new", variants=("a",))]
    world.now = replace(world.now, catalog_version=2)

    async def followed() -> bool:
        return replica.serving().catalog.version == 2

    await eventually(followed)
    running.cancel()
    await asyncio.wait({running})


async def test_columns_that_were_long_on_their_way_replace_no_newer_ones() -> None:
    """Who waited for a position decides with it from then on: an older answer does not come after it."""
    world = World()
    world.features_answers.clear()
    replica = refresher(world)
    await replica.refresh()
    slow = asyncio.create_task(replica.refresh_columns())
    await world.asked_features.wait()
    world.snapshot = replace(columns(), version="columns-2", position=LogPosition(1, 5, 10))
    waiting = asyncio.create_task(replica.await_columns(LogPosition(1, 5, 10), ORIGIN))
    world.features_answers.set()
    assert await waiting == "columns-2"
    await slow
    held = replica.serving().columns
    assert held is not None
    assert held.version == "columns-2"
