"""The proof of G1, G3 and G10, in small: kills cost nothing that was acknowledged, and double nothing."""

from bench.prove import kills
from bench.prove.__main__ import ENV
from bench.world import world
from cli.stack import temporary_folder


async def test_what_was_acknowledged_survives_kills() -> None:
    """Decision and Postgres are killed under writers; every acknowledged fact is there, with its effect once."""
    with temporary_folder("comity-survival-") as folder:
        async with world(folder, people_count=20, env=ENV) as ready:
            told, found = await kills.prove(ready, kills=1, victims=("decision", "postgres"))
    assert told.decisions
    assert told.clicks
    assert found == kills.Found(lost=0, doubled=0, missing=0)
