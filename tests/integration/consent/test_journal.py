"""The journal of refusals over a real ledger: written behind what is answered, put back into a restored database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY

from cli.stack.provision import ensure_database
from cli.stack.servers import Servers
from services.chassis import alarms
from services.chassis.alarms import Alarm
from services.chassis.clock import SystemClock
from services.chassis.errors import ServiceError
from services.chassis.events import ORIGIN
from services.chassis.eventstore import PostgresEventStore
from services.chassis.lag import Lag
from services.consent.domain.journal import Entry, Mark, key_of, lines_of
from services.consent.metrics import JOURNAL_LAG_S
from services.consent.store.erasures import PostgresErasures
from services.consent.store.holdings import ConsentHoldings
from services.consent.store.journal import BATCH_MAX, JournalFile, PostgresJournal
from services.consent.store.ledger import PostgresLedger
from services.consent.store.policies import PostgresPolicies
from services.consent.subscribers import Journaling
from tests.integration.consent.conftest import _settings
from tests.integration.consent.rights_world import rights_over
from tests.integration.consent.test_erasing import to_the_end
from tests.integration.consent.test_ledger import member, who
from tests.waiting import eventually

ALICE, BOB, CAROL, DORA = "a" * 26, "b" * 26, "c" * 26, "d" * 26
EVERYBODY = (ALICE, BOB, CAROL, DORA)
KEY = key_of(b"s" * 32)
REVOKED = Entry(str(UUID(int=1)), ORIGIN, "REVOKED", (ALICE,), "ads", datetime.now(UTC), datetime.now(UTC))
_numbers = count(1)


@pytest.fixture
def file(tmp_path: Path) -> JournalFile:
    """Where no backup reaches."""
    return JournalFile(tmp_path / "journal", KEY)


def journal_of(consent: Any, file: JournalFile, **changes: Any) -> PostgresJournal:
    clock = SystemClock()
    ledger = PostgresLedger(consent.pool, consent.read_pool, PostgresPolicies(consent.pool, clock))
    erasures = PostgresErasures(consent.pool, ledger, clock)
    log = PostgresEventStore(consent.pool)
    return PostgresJournal(consent.pool, log, file, ledger, erasures, **changes)


@asynccontextmanager
async def journaling(consent: Any, file: JournalFile) -> AsyncIterator[PostgresJournal]:
    """While the block runs, and until all is written."""
    journal = journal_of(consent, file)
    tasks = [asyncio.create_task(Journaling(consent.pool, journal).run()), asyncio.create_task(journal.watch())]
    try:
        yield journal
        await eventually(partial(is_written, journal))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def is_written(journal: PostgresJournal) -> bool:
    return (await journal.lag_s())[1] == 0.0


@pytest.fixture
async def copied(servers: Servers) -> AsyncIterator[Callable[[Any], Awaitable[str]]]:
    """`await copied(consent)`: a backup of its database, taken while nothing runs; its address. The pools are gone."""
    made: list[str] = []

    async def copy(consent: Any) -> str:
        for pool in (consent.pool, consent.read_pool):
            await pool.close()
        parts = urlsplit(consent.url)
        name = f"copy_{next(_numbers)}"
        admin = await asyncpg.connect(servers.postgres.url)
        await ensure_database(admin, name, owner=str(parts.username), template=parts.path[1:])
        await admin.close()
        made.append(name)
        return str(parts._replace(path=f"/{name}").geturl())

    yield copy
    admin = await asyncpg.connect(servers.postgres.url)
    for name in made:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def stands(consent: Any) -> list[str]:
    """Of each person, what the ledger says of ads."""
    return [(await consent.states(member(one), "ads"))[0] for one in EVERYBODY]


async def events_count(consent: Any) -> int:
    return int(await consent.pool.fetchval("SELECT count(*) FROM events"))


def entries_of(file: JournalFile) -> list[Entry]:
    return [entry for batch in file.batches(Mark()) for entry, _ in batch]


async def granted(consent: Any) -> None:
    for one in EVERYBODY:
        await consent.record(f"grant {one}", who(one), ads="GRANTED")


async def test_restored_database_refuses_whoever_refused_or_was_erased_since(
    consent: Any, consent_over: Callable[..., Any], copied: Callable[[Any], Awaitable[str]], file: JournalFile
) -> None:
    """With the original times, once, and before anything is asked; without the journal they would all be allowed."""
    await granted(consent)
    async with journaling(consent, file):
        await consent.revoke("r0", who(DORA), "measurement")
    backup = await copied(consent)
    then = await consent_over(url=consent.url)
    async with journaling(then, file), rights_over(then, _settings(then.url)) as rights:
        await then.revoke("r1", who(ALICE), "ads")
        await then.record("r2", who(CAROL), ads="OBJECTED")
        erasure_id = await rights.erase(BOB)
        await to_the_end(rights, erasure_id)
    history = [answer for _, answer in await then.handlers._ledger.history([ALICE], limit=9)]

    restored = await consent_over(url=backup)
    assert await stands(restored) == ["GRANTED"] * 4
    await journal_of(restored, file).catch_up()
    assert await stands(restored) == ["REVOKED", "REVOKED", "OBJECTED", "GRANTED"]
    again = [answer for _, answer in await restored.handlers._ledger.history([ALICE], limit=9)]
    assert again == history
    before = await events_count(restored)
    await journal_of(restored, file).catch_up()
    assert await events_count(restored) == before
    async with rights_over(restored, _settings(restored.url)) as rights:
        for service in rights.services.values():
            service.held[BOB] = 1
        await to_the_end(rights, erasure_id)
        assert {name for name, service in rights.services.items() if service.held} == set()


async def test_journal_goes_on_after_a_restore(
    consent: Any, consent_over: Callable[..., Any], copied: Callable[[Any], Awaitable[str]], file: JournalFile
) -> None:
    """What is refused in the restored database is there after a second restore of the same backup, each fact once."""
    await granted(consent)
    async with journaling(consent, file):
        await consent.revoke("r0", who(DORA), "measurement")
    backup = await copied(consent)
    then = await consent_over(url=consent.url)
    async with journaling(then, file):
        await then.revoke("r1", who(ALICE), "ads")
    first = await consent_over(url=backup)
    await journal_of(first, file).catch_up()
    another = await copied(first)
    first = await consent_over(url=backup)
    async with journaling(first, file):
        await first.revoke("r2", who(BOB), "ads")
    second = await consent_over(url=another)
    assert await stands(second) == ["REVOKED", "GRANTED", "GRANTED", "GRANTED"]
    await journal_of(second, file).catch_up()
    assert await stands(second) == ["REVOKED", "REVOKED", "GRANTED", "GRANTED"]
    told = [(entry.member_ids[0], entry.purpose) for entry in entries_of(file)]
    assert told == [(DORA, "measurement"), (ALICE, "ads"), (BOB, "ads")]


async def test_grants_after_the_backup_are_not_put_back(
    consent: Any, consent_over: Callable[..., Any], copied: Callable[[Any], Awaitable[str]], file: JournalFile
) -> None:
    """Who agreed again is refused until they are asked again: the journal knows refusals alone."""
    await granted(consent)
    backup = await copied(consent)
    then = await consent_over(url=consent.url)
    async with journaling(then, file):
        await then.revoke("r1", who(ALICE), "ads")
        await then.record("r2", who(ALICE), ads="GRANTED")
    restored = await consent_over(url=backup)
    await journal_of(restored, file).catch_up()
    assert await stands(restored) == ["REVOKED", "GRANTED", "GRANTED", "GRANTED"]


async def test_journal_that_is_older_than_the_database_is_filled_up(consent: Any, file: JournalFile) -> None:
    """From the log, whether it was cut short or is gone; nothing changes in the ledger."""
    await granted(consent)
    async with journaling(consent, file):
        for number, one in enumerate(EVERYBODY):
            await consent.revoke(f"r{number}", who(one), "ads")
    whole = file.path.read_bytes()
    ids = [entry.event_id for entry in entries_of(file)]
    for kept in (whole[: whole.index(b"\n") + 1], None):
        file.path.unlink() if kept is None else file.path.write_bytes(kept)
        before = await events_count(consent)
        async with journaling(consent, file):
            await consent.record("poke", who(ALICE), measurement="DENIED")
            await eventually(partial(has_lines, file, len(ids) + 1))
        assert [entry.event_id for entry in entries_of(file)][: len(ids)] == ids
        assert await events_count(consent) in (before, before + 1)


async def has_lines(file: JournalFile, count_min: int) -> bool:
    return file.exists() and len(entries_of(file)) >= count_min


async def test_journal_that_comes_late_erases_nobody_twice(
    consent: Any, consent_over: Callable[..., Any], copied: Callable[[Any], Awaitable[str]], file: JournalFile
) -> None:
    """Served without it, the person was erased anew: what the journal says then is done already."""
    await granted(consent)
    backup = await copied(consent)
    then = await consent_over(url=consent.url)
    async with journaling(then, file), rights_over(then, _settings(then.url)) as rights:
        await rights.erase(BOB)
    restored = await consent_over(url=backup)
    async with rights_over(restored, _settings(restored.url)) as rights:
        erasure_id = await rights.erase(BOB, "e2")
    await journal_of(restored, file).catch_up()
    assert await stands(restored) == ["GRANTED", "REVOKED", "GRANTED", "GRANTED"]
    assert [row["erasure_id"] for row in await restored.pool.fetch("SELECT erasure_id FROM erasures")] == [erasure_id]


async def test_journal_that_vanishes_while_it_is_written_is_written_anew(consent: Any, file: JournalFile) -> None:
    """Whole, and nothing is asked of anybody: the log has it all."""
    async with journaling(consent, file):
        await consent.revoke("r1", who(ALICE), "ads")
        await eventually(partial(has_lines, file, 1))
        file.path.unlink()
        await consent.revoke("r2", who(BOB), "ads")
        await eventually(partial(has_lines, file, 2))
    assert [entry.member_ids for entry in entries_of(file)] == [(ALICE,), (BOB,)]


async def test_line_that_a_crash_cut_off_is_written_anew(consent: Any, file: JournalFile) -> None:
    """What was there of it goes."""
    async with journaling(consent, file):
        await consent.revoke("r1", who(ALICE), "ads")
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + whole[:50])
    async with journaling(consent, file):
        await consent.revoke("r2", who(BOB), "ads")
    assert [entry.member_ids for entry in entries_of(file)] == [(ALICE,), (BOB,)]


async def test_restored_database_is_not_served_without_its_journal(consent: Any, file: JournalFile) -> None:
    """It names the file and the way to serve all the same; a journal that was always there is only missed."""
    async with journaling(consent, file):
        await consent.revoke("r1", who(ALICE), "ads")
    file.path.unlink()
    await journal_of(consent, file).catch_up()
    await consent.pool.execute("UPDATE log_epoch SET epoch = epoch + 1")
    with pytest.raises(ServiceError, match="COMITY_CONSENT_JOURNAL_MISSING_OK") as caught:
        await journal_of(consent, file).catch_up()
    assert caught.value.reason == "JOURNAL_MISSING"
    await journal_of(consent, file, missing_ok=True).catch_up()


async def test_broken_journal_gives_what_is_valid_and_stops_the_start(
    consent: Any, consent_over: Callable[..., Any], copied: Callable[[Any], Awaitable[str]], file: JournalFile
) -> None:
    """Nobody knows what was behind the line that was changed."""
    await granted(consent)
    backup = await copied(consent)
    then = await consent_over(url=consent.url)
    async with journaling(then, file):
        for number, one in enumerate(EVERYBODY):
            await then.revoke(f"r{number}", who(one), "ads")
    lines = file.path.read_bytes().splitlines(keepends=True)
    file.path.write_bytes(b"".join([*lines[:2], lines[2].replace(CAROL.encode(), DORA.encode()), lines[3]]))
    restored = await consent_over(url=backup)
    with pytest.raises(ServiceError, match="line 3") as caught:
        await journal_of(restored, file).catch_up()
    assert caught.value.reason == "JOURNAL_BROKEN"
    with pytest.raises(ServiceError, match="line 3"):
        await journal_of(restored, file).catch_up()
    assert await stands(restored) == ["REVOKED", "REVOKED", "GRANTED", "GRANTED"]


async def test_broken_line_is_never_taken_for_the_end(consent: Any, file: JournalFile) -> None:
    """Nor overwritten: not where it is the first that is read, and not behind a full batch."""
    data, _ = lines_of(KEY, Mark(), [REVOKED] * (BATCH_MAX + 1))
    lines = data.splitlines(keepends=True)
    file.path.parent.mkdir(exist_ok=True)
    for valid in (0, BATCH_MAX):
        file.path.write_bytes(b"".join(lines[:valid]) + lines[valid].replace(b"REVOKED", b"DENIED"))
        with pytest.raises(ServiceError, match=f"line {valid + 1} is not"):
            await journal_of(consent, file).catch_up()


async def test_journal_that_cannot_be_written_stops_nothing_and_is_told(consent: Any, file: JournalFile) -> None:
    """Revoke answers; the alarm stands until the disk takes it, and then all is there."""
    file.path.mkdir(parents=True)
    async with journaling(consent, file) as journal:
        await consent.revoke("r1", who(ALICE), "ads")
        assert await stands(consent) == ["REVOKED", *["UNSPECIFIED"] * 3]
        await eventually(alarmed)
        assert (await journal.lag_s())[1] > 0.0
        file.path.rmdir()
        await eventually(partial(is_written, journal))
        await eventually(calm)
    assert [entry.member_ids for entry in entries_of(file)] == [(ALICE,)]


@pytest.mark.parametrize(("age", "alarm"), [("50 seconds", False), ("61 seconds", True)])
async def test_journal_that_nobody_writes_is_told_after_a_minute(
    consent: Any, file: JournalFile, age: str, alarm: bool
) -> None:
    """By every replica, also where the one that leads hangs; the metric says how far it is behind."""
    await consent.pool.execute(f"ALTER TABLE events ALTER recorded_at SET DEFAULT now() - interval '{age}'")
    await consent.revoke("r1", who(ALICE), "ads")
    Lag(JOURNAL_LAG_S)  # another test's is over
    hours = count(0, 3600)
    watching = asyncio.create_task(journal_of(consent, file, clock_s=lambda: next(hours)).watch())
    try:
        await eventually(lag_is_told)
        assert await alarmed() is alarm
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        alarms.set_alarm(Alarm.JOURNAL_BEHIND, stands=False)


async def test_facts_of_a_release_without_a_journal_wait_since_this_one_runs(consent: Any, file: JournalFile) -> None:
    """Their age raises no alarm on the first start; that nobody writes them does, a minute later."""
    await consent.pool.execute("ALTER TABLE events ALTER recorded_at SET DEFAULT now() - interval '30 days'")
    await consent.revoke("r1", who(ALICE), "ads")
    seconds = iter([100.0, 102.0, 161.0])
    journal = journal_of(consent, file, clock_s=lambda: next(seconds))
    assert [(await journal.lag_s())[1] for _ in range(2)] == [2.0, 61.0]


async def lag_is_told() -> bool:
    return (REGISTRY.get_sample_value("comity_consent_journal_lag_seconds") or 0.0) > 40.0


async def test_database_that_lacks_nothing_is_restored_no_longer(consent: Any, file: JournalFile) -> None:
    """Once it was compared with the journal, a later start without that is an ordinary one."""
    async with journaling(consent, file):
        await consent.revoke("r1", who(ALICE), "ads")
    await consent.pool.execute("UPDATE log_epoch SET epoch = epoch + 1")
    async with journaling(consent, file):
        await eventually(partial(is_of_this_epoch, consent))
    file.path.unlink()
    await journal_of(consent, file).catch_up()


async def is_of_this_epoch(consent: Any) -> bool:
    sql = "SELECT p.log_epoch = e.epoch FROM journal_position p, log_epoch e"
    return bool(await consent.pool.fetchval(sql))


async def test_journal_is_in_the_record_of_processing(consent: Any) -> None:
    """Beside the ledger that it repeats."""
    held = ConsentHoldings(consent.pool).describe()
    (journal,) = [one for one in held if one.name.startswith("journal")]
    assert journal.erasure.startswith("kept")


async def alarmed() -> bool:
    return Alarm.JOURNAL_BEHIND in alarms.standing()


async def calm() -> bool:
    return not await alarmed()
