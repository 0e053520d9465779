"""What features does when it is asked, against ports."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from services.chassis.deadline import deadline_scope, remaining_s
from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.events import LogPosition
from services.chassis.tracing import COMITY_BATCH_SIZE, COMITY_FEATURE_SET_VERSION, set_attributes, span
from services.chassis.uncancelled import uncancelled
from services.features.domain.aggregates import ItemLayout
from services.features.domain.book import Book
from services.features.domain.catalog import CatalogItem
from services.features.domain.columns import Columns, RunningTotals, Shelf, Standing
from services.features.domain.declared import Feature
from services.features.domain.feature_set import FeatureSet, compile_features
from services.features.domain.item_counts import Block, ItemCounts
from services.features.domain.item_rows import ItemTable, build
from services.features.domain.members import MemberState
from services.features.domain.reading import Answers, Question, read
from services.features.domain.requests import FeatureQuery, Source

# Feature sets whose columns are kept up to date: the active one, the one before it while a site is being applied, and
# one that somebody compares with.
SETS_MAX = 3
# So soon what could not be read is tried again: somebody may have mended it.
AGAIN_S = 10.0


class BookKeeper(Protocol):
    """The published feature sets."""

    book: Book

    async def refresh(self) -> Book:
        """The book as it is now."""
        ...


class StateReader(Protocol):
    """Member states."""

    async def refresh(self) -> None:
        """Learn whether what is cached may still be read."""
        ...

    async def read(self, book: Book, member_ids: Sequence[str]) -> dict[str, MemberState]:
        """The states of these members; one that nothing is known of is absent."""
        ...


class ChangeSet(Protocol):
    """What changed among items and blocks since an earlier look."""

    @property
    def standing(self) -> Standing:
        """The positions it stands at."""
        ...

    @property
    def since(self) -> int:
        """Where the next look begins."""
        ...

    @property
    def items(self) -> Mapping[str, CatalogItem]:
        """Changed items."""
        ...

    @property
    def blocks(self) -> Mapping[Block, ItemCounts]:
        """Changed blocks."""
        ...


class ItemReader(Protocol):
    """Catalog and item blocks."""

    @property
    def has_unread(self) -> bool:
        """Whether there are items or blocks that could not be read."""
        ...

    async def standing(self) -> Standing:
        """How far they have come."""
        ...

    async def changes(self, book: Book, since: int) -> ChangeSet:
        """What changed, at one moment."""
        ...


class Intake(Protocol):
    """A subscription, as far as waiting for it goes."""

    async def await_position(self, position: LogPosition, timeout_s: float) -> None:
        """Returns once everything up to the position has had its effect.

        Raises:
            ServiceError: DEADLINE.
        """
        ...


class ItemColumns:
    """The item columns of this replica: catalog and counts in memory, brought up to date by what changed.

    Only one refresh runs at a time; whoever asks during one gets the next, which began after the question. It goes on
    when whoever asked gives up: what was read and not computed would be in no snapshot until it changes again.
    """

    def __init__(self, books: BookKeeper, items: ItemReader) -> None:
        self._books = books
        self._items = items
        self._shelf = Shelf()
        self._layout = ItemLayout()
        self._since = 0
        self._standing = Standing()
        self._running: dict[str, RunningTotals] = {}
        self._columns: dict[str, Columns] = {}
        self._again_at_s = 0.0
        self._turn = asyncio.Lock()

    async def table(self, version: str) -> ItemTable:
        """The item table of a feature set: what subjects are read with must be fitted to the same catalog as the rows.

        Raises:
            ServiceError: FAILED_PRECONDITION (FEATURE_SET_UNKNOWN).
        """
        if version not in self._running:
            await self.columns(version)
        return self._running[version].table

    async def columns(self, version: str) -> Columns:
        """The newest snapshot of a feature set.

        Raises:
            ServiceError: FAILED_PRECONDITION (FEATURE_SET_UNKNOWN).
        """
        if version not in self._columns:
            feature_set = await known_set(self._books, version)
            async with self._turn:
                if version not in self._columns:
                    await uncancelled(self._begin(feature_set))
        return self._columns[version]

    def changed_since(self, version: str, held_version: str) -> tuple[int, ...] | None:
        """Offsets of the only columns of a feature set that can differ from a snapshot; None where all of it can."""
        running = self._running.get(version)
        return None if running is None else running.changed_since(held_version)

    async def refresh(self) -> Standing:
        """Bring every snapshot up to date when positions have moved; the positions they stand at then."""
        async with self._turn:
            if await self._items.standing() != self._standing or self._is_to_try_again():
                await uncancelled(self._take_changes())
            return self._standing

    async def refresh_unread(self) -> None:
        """Read again now what could not be read."""
        self._again_at_s = 0.0
        await self.refresh()

    def _is_to_try_again(self) -> bool:
        unread = self._items.has_unread or not self._books.book.is_whole
        return unread and time.monotonic() >= self._again_at_s

    async def _begin(self, feature_set: FeatureSet) -> None:
        """Have snapshots of this feature set from now on."""
        await self._take_changes()
        await self._open(feature_set)

    async def _take_changes(self) -> None:
        """Read what changed and compute what follows from it."""
        self._again_at_s = time.monotonic() + AGAIN_S
        book = await self._books.refresh()
        relaid = book.item_layout != self._layout
        # In a new layout all blocks are read again: what is in memory has other slots.
        changes = await self._items.changes(book, 0 if relaid else self._since)
        if relaid:
            self._shelf, self._layout = Shelf(), book.item_layout
        gone: set[str] = set()
        if not relaid and changes.standing.withdrawn != self._standing.withdrawn:
            # Somebody was subtracted. Blocks that held nobody else may be deleted by now: no list of changes has those.
            changes = await self._items.changes(book, 0)
            gone = set(self._shelf.blocks)
            self._shelf.blocks.clear()
        self._since, self._standing = changes.since, changes.standing
        known = self._shelf.items
        moved = {key: item for key, item in changes.items.items() if known.get(key) != item}
        known.update(moved)
        changed = gone | self._shelf.put_blocks(changes.blocks)
        for version in list(self._columns):
            if moved or relaid:
                await self._open(book.sets[version])
            else:
                running = self._running[version]
                running.update(self._shelf, changed)
                self._columns[version] = running.columns(self._standing, self._shelf.newest_s)

    async def _open(self, feature_set: FeatureSet) -> None:
        """Build the table of a feature set; thousands of items take long enough to do it beside the loop."""
        items = list(self._shelf.items.values())
        table = await asyncio.to_thread(build, feature_set, items)
        running = RunningTotals(table, self._layout, self._shelf)
        self._running[feature_set.version] = running
        self._columns[feature_set.version] = running.columns(self._standing, self._shelf.newest_s)
        for old in list(self._columns)[:-SETS_MAX]:
            if old != self._books.book.active:
                del self._columns[old], self._running[old]


class ReadFeatures:
    """GetFeatures."""

    def __init__(self, books: BookKeeper, states: StateReader, columns: ItemColumns) -> None:
        self._books = books
        self._states = states
        self._columns = columns

    async def __call__(self, version: str, queries: Sequence[FeatureQuery]) -> Answers:
        """The subjects' vectors, in order of the queries.

        Raises:
            ServiceError: FAILED_PRECONDITION (FEATURE_SET_UNKNOWN); UNAVAILABLE.
        """
        with span("features.read", {COMITY_BATCH_SIZE: len(queries)}):
            feature_set = await known_set(self._books, version)
            set_attributes({COMITY_FEATURE_SET_VERSION: feature_set.version})
            book = self._books.book
            table = await self._columns.table(version)
            member_ids = list(dict.fromkeys(member for query in queries for member in query.member_ids))
            states = await self._states.read(book, member_ids)
            questions = [
                Question([states[member] for member in query.member_ids if member in states], query.as_of_s)
                for query in queries
            ]
            return read(feature_set, book.member_layout, table.weights, questions)


class AwaitFolded:
    """AwaitPosition: folded, and visible to GetFeatures and GetItemColumns."""

    def __init__(
        self,
        intakes: Mapping[Source, Intake],
        columns: ItemColumns,
        states: StateReader,
        settled: "Mapping[Source, Settled]",
    ) -> None:
        self._intakes = intakes
        self._columns = columns
        self._states = states
        self._settled = settled

    async def __call__(self, source: Source, position: LogPosition, timeout_s: float) -> LogPosition:
        """Where the source stands then, at least *position*.

        Raises:
            ServiceError: DEADLINE (POSITION_NOT_REACHED).
        """
        with deadline_scope(timeout_s):
            await self._intakes[source].await_position(position, timeout_s)
            await self._settled[source].wait(remaining_s() or 0.0)
        await self._states.refresh()
        standing = await self._columns.refresh()
        return standing.behavior if source is Source.FEEDBACK else standing.catalog


class Settled:
    """Whether every effect that is committed is in the cache too; only of what this process takes in.

    An effect is its task's, and ends with it at the latest: a retry beside the consumer may be refused or cut short.
    """

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """An effect of this task is under way; the cache is behind from its commit on."""
        task = asyncio.current_task()
        assert task is not None, "an effect has a task"
        if task not in self._under_way:
            self._under_way.add(task)
            task.add_done_callback(self._end)
        self._idle.clear()

    def end(self) -> None:
        """The cache has caught up, or is passed over."""
        task = asyncio.current_task()
        assert task is not None, "an effect has a task"
        task.remove_done_callback(self._end)
        self._end(task)

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self._under_way.discard(task)
        if not self._under_way:
            self._idle.set()

    async def wait(self, timeout_s: float) -> None:
        """Returns when the cache has caught up.

        Raises:
            ServiceError: DEADLINE (POSITION_NOT_REACHED).
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError as error:
            raise ServiceError(
                Kind.DEADLINE, "POSITION_NOT_REACHED", "the cache has not caught up yet: wait longer"
            ) from error


def checked_set(features: Sequence[Feature | None]) -> FeatureSet:
    """The declarations compiled.

    Raises:
        ServiceError: INVALID (FEATURES_INVALID).
    """
    missing = [
        FieldProblem(f"features[{index}]", "names no kind; give one, for example item_attribute")
        for index, feature in enumerate(features)
        if feature is None
    ]
    if missing:
        text = "; ".join(f"{problem.field}: {problem.problem}" for problem in missing)
        raise ServiceError(Kind.INVALID, "FEATURES_INVALID", text, problems=tuple(missing))
    return compile_features([feature for feature in features if feature is not None])


async def known_set(books: BookKeeper, version: str) -> FeatureSet:
    """The feature set of a version, read from the database when it was published elsewhere.

    Raises:
        ServiceError: FAILED_PRECONDITION (FEATURE_SET_UNKNOWN), naming the active one.
    """
    found = books.book.sets.get(version) or (await books.refresh()).sets.get(version)
    if found is None:
        active = books.book.active
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "FEATURE_SET_UNKNOWN",
            f"feature_set_version: no such feature set; the active one is {active}"
            if active
            else "feature_set_version: no feature set was published yet; apply a site bundle first",
        )
    return found


async def keep_fresh(columns: ItemColumns, states: StateReader, every_s: float) -> None:
    """Refresh the columns, and what is known of the cache, for ever."""
    while True:
        await asyncio.sleep(every_s)
        await states.refresh()
        await columns.refresh()
