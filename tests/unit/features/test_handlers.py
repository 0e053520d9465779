"""Item columns follow what changed, whoever asks for them and gives up; a position is waited for to its end."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.features import handlers
from services.features.domain.book import Book
from services.features.domain.catalog import CatalogItem
from services.features.domain.columns import Standing
from services.features.domain.declared import Feature, ItemAttribute
from services.features.domain.feature_set import FeatureSet, compile_features
from services.features.domain.item_rows import ItemTable, build
from services.features.domain.members import MemberState
from services.features.domain.requests import Source
from services.features.handlers import AwaitFolded, ItemColumns, Settled
from services.features.store import Changes
from tests.waiting import eventually

SET = compile_features([Feature("price", ItemAttribute("price"))])


class Books:
    """One published set."""

    def __init__(self) -> None:
        self.book = Book({SET.version: SET}, SET.version)

    async def refresh(self) -> Book:
        return self.book


class Items:
    """A catalog that tells its changes once."""

    def __init__(self) -> None:
        self.changed: dict[str, CatalogItem] = {}
        self.at = Standing()
        self.has_unread = False

    def put(self, item: CatalogItem, number: int) -> None:
        self.changed[item.id] = item
        self.at = Standing(catalog=LogPosition(1, number, number))

    async def standing(self) -> Standing:
        return self.at

    async def changes(self, book: Book, since: int) -> Changes:
        told, self.changed = self.changed, {}
        return Changes(self.at, since + 1, told, {})


async def test_a_caller_that_gives_up_loses_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read from the database is computed to its end: the next caller has it, though nothing changed since."""
    building, go_on = threading.Event(), threading.Event()

    def build_slowly(feature_set: FeatureSet, items: Sequence[CatalogItem]) -> ItemTable:
        building.set()
        go_on.wait()
        return build(feature_set, items)

    items = Items()
    columns = ItemColumns(Books(), items)
    items.put(CatalogItem("boots", {"price": 90.0}), 1)
    await columns.columns(SET.version)
    items.put(CatalogItem("coat", {"price": 200.0}), 2)
    monkeypatch.setattr(handlers, "build", build_slowly)
    leaving = asyncio.create_task(columns.refresh())

    async def is_building() -> bool:
        return building.is_set()

    await eventually(is_building)
    leaving.cancel()
    go_on.set()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    assert await columns.refresh() == items.at
    held = await columns.columns(SET.version)
    assert held.standing == items.at
    np.testing.assert_array_equal(held.rows, np.array([[90.0], [200.0]], dtype=np.float32))


async def test_a_row_that_was_mended_is_read_again() -> None:
    """No position says that it can be read now: what could not be is asked for again, at once by an operator."""
    items = Items()
    columns = ItemColumns(Books(), items)
    items.put(CatalogItem("boots", {"price": 90.0}), 1)
    items.has_unread = True
    assert len((await columns.columns(SET.version)).rows) == 1
    items.changed["coat"] = CatalogItem("coat", {"price": 200.0})
    await columns.refresh()
    assert len((await columns.columns(SET.version)).rows) == 1
    await columns.refresh_unread()
    assert len((await columns.columns(SET.version)).rows) == 2


class Arrived:
    """An intake that has had every event."""

    async def await_position(self, position: LogPosition, timeout_s: float) -> None:
        return None


class States:
    """No states; counts how often they were asked whether the cache may be read."""

    def __init__(self) -> None:
        self.refreshed = 0

    async def refresh(self) -> None:
        self.refreshed += 1

    async def read(self, book: Book, member_ids: Sequence[str]) -> dict[str, MemberState]:
        return {}


async def test_waiting_for_a_position_waits_for_the_cache_too() -> None:
    """What is committed and not in the cache yet could still be read as it was; out of time the wait says so."""
    settled, columns, states = Settled(), ItemColumns(Books(), Items()), States()
    await_folded = AwaitFolded({Source.FEEDBACK: Arrived()}, columns, states, {Source.FEEDBACK: settled})
    at = LogPosition(1, 1, 1)
    assert await await_folded(Source.FEEDBACK, at, 20.0) == Standing().behavior
    assert states.refreshed == 1
    settled.begin()
    with pytest.raises(ServiceError) as late:
        await await_folded(Source.FEEDBACK, at, 0.0)
    assert (late.value.kind, late.value.reason) == (Kind.DEADLINE, "POSITION_NOT_REACHED")
    waiting = asyncio.create_task(await_folded(Source.FEEDBACK, at, 20.0))
    settled.end()
    assert await waiting == Standing().behavior


async def test_what_a_retry_began_ends_with_it_alone() -> None:
    """However it ends; and what the consumer has under way beside it is another effect."""
    settled, begun, goes_on = Settled(), asyncio.Event(), asyncio.Event()

    async def retry() -> None:
        settled.begin()
        begun.set()
        await goes_on.wait()
        raise ServiceError(Kind.INVALID, "REFUSED", "it is refused")

    retrying = asyncio.create_task(retry())
    await begun.wait()
    settled.begin()
    settled.end()
    with pytest.raises(ServiceError, match="has not caught up"):
        await settled.wait(0.0)
    goes_on.set()
    await asyncio.gather(retrying, return_exceptions=True)
    await settled.wait(20.0)
