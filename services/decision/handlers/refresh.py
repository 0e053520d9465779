"""Keeps a replica deciding with what stands in the database, and with the newest item columns."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn

import structlog

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.deadline import remaining_s
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.decision.domain.catalog import Catalog, ItemColumns
from services.decision.domain.plan import CompiledSite
from services.decision.domain.release import Standing
from services.decision.domain.serving import Ranker, Serving, serving_of
from services.decision.handlers.ports import (
    CatalogStore,
    ColumnsReader,
    SiteStore,
    StandingReader,
)
from services.decision.handlers.rankers import Rankers

# A kill switch, a site or a model is effective on every replica within a second; an ask costs one small read.
POLL_S = 0.25
# A wait for columns asks more often than the poll: someone stands there.
AWAIT_POLL_S = 0.05
AWAIT_S_MAX = 60.0
# So soon what could not be read or used is tried again: somebody may have mended it.
AGAIN_S = 10.0

_log = structlog.get_logger(__name__)


class Refresher:
    """Holds what the replica decides with, and swaps it whole when something changed.

    What is new is loaded, checked and warmed beside the calls that run, in a thread where it takes time.
    """

    def __init__(
        self,
        *,
        standing: StandingReader,
        sites: SiteStore,
        catalog: CatalogStore,
        rankers: Rankers,
        columns: ColumnsReader,
        offered_max: int,
    ) -> None:
        self._standing = standing
        self._sites = sites
        self._catalog = catalog
        self._rankers = rankers
        self._columns = columns
        self._offered_max = offered_max
        self._serving = Serving()
        self._turn = asyncio.Lock()
        # Of reading columns: an answer that was long on its way must not take the place of a newer one.
        self._columns_turn = asyncio.Lock()
        self._tried = Standing("", 0, frozenset())
        self._unusable = False
        self._again_at_s = 0.0

    def serving(self) -> Serving:
        """What to decide with now."""
        return self._serving

    async def run(self) -> None:
        """Refresh until cancelled; an outage leaves what there is in place.

        Two loops: features that hang must not hold up a kill switch.
        """
        async with asyncio.TaskGroup() as group:
            for refresh in (self.refresh, self.refresh_columns):
                group.create_task(_again_and_again(refresh))

    async def refresh(self) -> None:
        """Take over what changed in the database since the last time; what cannot be used leaves what there is.

        Raises:
            ServiceError: an outage.
        """
        async with self._turn:
            now = await self._standing.standing()
            if now == self._tried and not self._is_to_try_again():
                return
            self._again_at_s = time.monotonic() + AGAIN_S
            try:
                await self._take_over(now)
            except ServiceError:
                raise
            except Exception as error:
                # Whatever is stored there: it must keep no replica from deciding, nor from starting.
                _log.error("not taken over", exc_info=error)
                self._unusable = True
            self._tried = now
            set_alarm(Alarm.STORED_UNUSABLE, self._unusable)

    async def refresh_unread(self) -> None:
        """Read again now what could not be read.

        Raises:
            ServiceError: an outage.
        """
        self._again_at_s = 0.0
        await self.refresh()

    def _is_to_try_again(self) -> bool:
        is_due = time.monotonic() >= self._again_at_s
        return not self._rankers.is_settled or (is_due and (self._unusable or self._catalog.has_unread))

    async def _take_over(self, now: Standing) -> None:
        held = self._serving
        compiled = await self._site(now, held.compiled)
        catalog = await self._items(now, held.catalog)
        set_alarm(Alarm.RULE_STOPPED, compiled is not None and compiled.has_stopped_rules)
        self._unusable = now.site_version != ("" if compiled is None else compiled.site.version)
        if compiled is not held.compiled or catalog is not held.catalog:
            # A kill switch does not wait for a model.
            await self._swap(compiled, catalog, held.columns, held.rankers)
        rankers = await self._rankers.of(now, held.rankers)
        if rankers != held.rankers:
            await self._swap(compiled, catalog, held.columns, rankers)

    async def refresh_columns(self) -> None:
        """Take over the newest item columns.

        Raises:
            ServiceError: an outage.
        """
        async with self._columns_turn:
            site, held = self._serving.compiled, self._serving.columns
            if site is None:
                return
            feature_set = site.layout.feature_set
            newest = await self._columns.newest(feature_set.version, feature_set.item_width, held)
            if newest is None:
                return
            async with self._turn:
                serving = self._serving
                await self._swap(serving.compiled, serving.catalog, newest, serving.rankers)

    async def await_columns(self, behavior: LogPosition, catalog: LogPosition) -> str:
        """The version of the item columns once they stand at these positions or later.

        Raises:
            ServiceError: DEADLINE when they do not in time.
        """
        left_s = remaining_s()
        try:
            async with asyncio.timeout(AWAIT_S_MAX if left_s is None else left_s):
                while not self._stands_at(behavior, catalog):
                    try:
                        await self.refresh()
                        await self.refresh_columns()
                    except ServiceError as error:
                        _log.warning("not refreshed", reason=error.reason)
                    if not self._stands_at(behavior, catalog):
                        await asyncio.sleep(AWAIT_POLL_S)
        except TimeoutError as error:
            raise ServiceError(
                Kind.DEADLINE,
                "ITEM_COLUMNS_BEHIND",
                "the item columns did not get there in time; see that features is up and wait longer",
            ) from error
        assert self._serving.columns is not None, "they stand somewhere"
        return self._serving.columns.version

    def _stands_at(self, behavior: LogPosition, catalog: LogPosition) -> bool:
        columns = self._serving.columns
        return columns is not None and columns.position >= behavior and columns.catalog_position >= catalog

    async def _site(self, now: Standing, held: CompiledSite | None) -> CompiledSite | None:
        if not now.site_version or (held is not None and held.site.version == now.site_version):
            return held
        if (loaded := await self._sites.load(now.site_version) or held) is not None:
            return loaded
        # Nothing decides yet: the newest that decided before it, and can be read.
        for version in await self._sites.before(now.site_version):
            if (loaded := await self._sites.load(version)) is not None:
                _log.error("site before decides", site_version=version)
                return loaded
        return None

    async def _items(self, now: Standing, held: Catalog) -> Catalog:
        if now.catalog_version == held.version and not self._catalog.has_unread:
            return held
        version, changed = await self._catalog.changed_since(held.version)
        return held.with_items(version, changed) if changed or version != held.version else held

    async def _swap(
        self,
        compiled: CompiledSite | None,
        catalog: Catalog,
        columns: ItemColumns | None,
        rankers: Mapping[str, Ranker],
    ) -> None:
        """Build the next state beside the calls that run, then let it decide."""
        self._serving = await asyncio.to_thread(
            serving_of, self._serving, compiled, catalog, columns, rankers, offered_max=self._offered_max
        )


async def _again_and_again(refresh: Callable[[], Awaitable[None]]) -> NoReturn:
    while True:
        try:
            await refresh()
        except ServiceError as error:
            _log.warning("not refreshed", reason=error.reason)
        await asyncio.sleep(POLL_S)
