"""A person who is erased: gone from every service and from the counts, and somebody new when they come back."""

import uuid
from collections.abc import Mapping

import asyncpg
import numpy as np
import pytest
from comity.features.v1 import features_service_pb2 as features_pb

from cli.connections import Services
from cli.privacy.files import scan_files, sizes
from cli.privacy.scan import Scanner, forms_of_text
from cli.privacy.settling import folders_of
from cli.stack import Stack
from tests.e2e.erasing import begin_erasure, completed_erasure, erase
from tests.e2e.people import CALL_S, item_ids, ranked_person, reason, until_well
from tests.waiting import eventually

# What keeps the person away names them for ever, by pseudonym alone; nothing else of these three services may.
LISTS = {"erased_members", "withdrawn_members"}
TEXTS_SQL = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'public' AND data_type IN ('text', 'bytea', 'ARRAY', 'jsonb') ORDER BY table_name, column_name
"""


async def clicks_on(services: Services, item_id: str) -> float:
    """The item's recent clicks, out of the row that decision is given."""
    described = await services.features.DescribeFeatureSet(features_pb.DescribeFeatureSetRequest(), timeout=CALL_S)
    feature_set = described.feature_set
    offset = next(one.item.offset for one in feature_set.columns if one.feature == "item_clicks_recent")
    request = features_pb.GetItemColumnsRequest(feature_set_version=feature_set.version)
    values: dict[str, float] = {}
    async for chunk in services.features.GetItemColumns(request, timeout=CALL_S):
        rows = np.frombuffer(chunk.rows, dtype="<f4").reshape(-1, feature_set.item_width)
        values |= dict(zip(chunk.item_ids, map(float, rows[:, offset]), strict=True))
    return float(np.expm1(values[item_id]))


async def naming(url: str, member_id: str) -> dict[str, int]:
    """Rows of each table of a database in which a column names the member."""
    connection = await asyncpg.connect(url)
    found: dict[str, int] = {}
    try:
        for table, column in await connection.fetch(TEXTS_SQL):
            count = await connection.fetchval(
                f"SELECT count(*) FROM {table} WHERE position($1 IN {column}::text) > 0"
                f" OR position($2 IN {column}::text) > 0",
                member_id,
                member_id.encode().hex(),
            )
            if count:
                found[table] = found.get(table, 0) + count
    finally:
        await connection.close()
    return found


async def test_an_erased_person_is_gone_from_every_service_and_comes_back_as_somebody_new(
    stack: Stack, services: Services
) -> None:
    """No table names them, the counts of items are as though they had never been, others keep what is theirs."""
    other, somebody = await ranked_person(services), await ranked_person(services)
    await other.click("kite")
    before = await clicks_on(services, "kite")
    await somebody.click("kite")
    assert await clicks_on(services, "kite") > before + 2.5
    member_id, kept_id = (await somebody.resolved()).member_id, (await other.resolved()).member_id
    urls: Mapping[str, str] = {name: stack.database_url(name) for name in ("features", "decision", "feedback")}
    assert all([await naming(url, member_id) for url in urls.values()])
    found = await erase(somebody)
    for name, url in urls.items():
        assert (await naming(url, member_id)).keys() <= LISTS, name
        assert (await naming(url, kept_id)).keys() - LISTS, name
    counts = {(step.service, count.name): count.count for step in found.steps for count in step.counts}
    assert counts["features", "member_states"] == 1
    assert counts["feedback", "events"] >= 3
    assert counts["decision", "events"] >= 1
    assert found.receipt
    assert abs(await clicks_on(services, "kite") - before) < 0.01
    assert (await somebody.resolved()).member_id != member_id
    assert reason((await somebody.decide()).decisions[0]) == "DEFAULT/NO_CONSENT"
    assert item_ids((await other.decide()).decisions[0])


async def test_what_was_decided_while_identity_was_late_leaves_nothing_of_the_erased(
    stack: Stack, services: Services
) -> None:
    """Texts of the caller's request, retried when identity was back, are in no file of any store or stream."""
    somebody, canary = await ranked_person(services), f"canary-{uuid.uuid4().hex}"
    request = somebody.request()
    request.placements[0].candidate_ids.extend(["kite", canary])
    request.placements[0].excluded_item_ids.append(canary)

    async def is_nobodys() -> bool:
        request.request_id = uuid.uuid4().hex
        (hero,) = (await services.decision.Decide(request, timeout=CALL_S)).decisions
        return reason(hero) == "DEFAULT/IDENTITY_UNAVAILABLE"

    stack.pause("identity")
    try:
        await eventually(is_nobodys)
    finally:
        stack.resume("identity")
        await until_well(services)
    (again,) = (await services.decision.Decide(request, timeout=CALL_S)).decisions
    assert await naming(stack.database_url("decision"), again.decision_id)
    await erase(somebody)
    found = scan_files(Scanner([forms_of_text(canary)]), sorted(sizes(folders_of(stack.data_dir.path))))
    assert [hit.path for hit in found.hits] == []
    assert found.files_count > 100


@pytest.mark.parametrize("victim", ["consent", "identity", "features", "decision", "feedback", "postgres"])
async def test_an_erasure_survives_the_kill_of_whoever_takes_part(
    stack: Stack, services: Services, victim: str
) -> None:
    """Killed right after Erase was answered, while its steps are taken: the erasure is completed all the same."""
    # Killed a moment ago by another test, a service may still look for its neighbors.
    await until_well(services)
    somebody = await ranked_person(services)
    await somebody.click("tote")
    member_id = (await somebody.resolved()).member_id
    erasure_id = await begin_erasure(somebody)
    await stack.kill(victim)
    await stack.restart(victim)
    found = await completed_erasure(services, erasure_id)
    counts = {(step.service, count.name): count.count for step in found.steps for count in step.counts}
    assert counts["feedback", "events"] >= 3
    assert counts["features", "member_states"] == 1
    for name in ("features", "decision", "feedback"):
        assert (await naming(stack.database_url(name), member_id)).keys() <= LISTS, name
    # Whoever is tested next finds a stack that is well.
    await until_well(services)
