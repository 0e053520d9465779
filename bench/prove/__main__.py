"""`make prove`: each promise at full size, its teeth shown, and one JSON line at the end."""

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from comity.decision.v1 import decision_service_pb2 as decision_pb

from bench.prove import (
    bricks,
    cancelled_reads,
    consent_strings,
    draws,
    erasure,
    hostile_models,
    kills,
    late,
    merges,
    neighbours,
    overload,
    poison,
    replays,
    retries,
)
from bench.prove.faults import draw, kinds_of_all
from bench.prove.hostile_files import HOSTILE
from bench.prove.proof import Proof
from bench.prove.teeth import TEETH_BUDGET_MS, bite
from bench.prove.under_faults import breakable, try_under_faults
from bench.ranker import activate_noise
from bench.site import PURPOSE
from bench.world import Requests, world
from cli.stack import SERVICES, temporary_folder

TREES_COUNT = 50
ENV = {"*": {f"COMITY_{name.upper()}_TRACE_RATIO": "0.01" for name in SERVICES}}
REPLICAS = 3
FAULTS_SEED = 7
STRINGS_SEED = 1
CANCELS_SEED = 1
MERGES_SEED = 1
RETRIES_SEED = 1
# Retries that meet a log held up, and decisions of a trial that are replayed.
HELD_UP_TIMES = 5
REPLAYED_COUNT = 200
# Of the answers outside faults: a promise that is kept by never personalizing would be worth nothing. Asked of the full
# size only: in a quick run the first grants, and whatever else the machine does, weigh too much.
RANKED_SHARE_MIN = 0.5


class Sizes:
    """How much is tried; `--quick` is what a person waits for.

    Args:
        vectors_dir: IAB's strings; None: G13 does without.
    """

    def __init__(self, *, quick: bool, vectors_dir: Path | None = None) -> None:
        self.kills = 3 if quick else 20
        self.teeth_kills = 3 if quick else 6
        self.decides = 4_000 if quick else 200_000
        self.revokes = 150 if quick else 2_000
        # At full size every fault of the deck comes up.
        self.faults = 5 if quick else 1_000
        self.ranked_share_min = 0.0 if quick else RANKED_SHARE_MIN
        self.draws = 20_000
        self.replays = 1_000 if quick else 5_000
        self.strings = 100_000 if quick else 1_000_000
        self.vectors_dir = vectors_dir
        self.cancels = 5_000 if quick else 100_000
        self.subjects = 60 if quick else 1_000
        self.late_subjects = 10 if quick else 200
        # Each brick alone and in every ruin, else those of a service together.
        self.bricks_apart = not quick
        self.poisoned_decides = 60 if quick else 1_000
        self.merges = 5_000 if quick else 50_000
        self.teeth_merges = 500
        self.attempts = 1_500 if quick else 20_000
        # Of the files one in so many.
        self.hostile_every = 4 if quick else 1
        self.teeth_cancels = 500 if quick else 2_000
        self.overload_laps, self.overload_s = (1, 5.0) if quick else (9, 10.0)
        self.neighbours_laps, self.neighbours_s = (1, 6.0) if quick else (5, 20.0)


async def survive(sizes: Sizes) -> Proof:
    """G1, G3, G10: SIGKILL of decision and of Postgres loses nothing acknowledged and doubles nothing."""
    with temporary_folder() as folder:
        async with world(folder, people_count=200, env=ENV) as ready:
            await activate_noise(ready.services, trees_count=TREES_COUNT)
            told, found = await kills.prove(ready, kills=sizes.kills, victims=("decision", "postgres"))
    lost = await _weakened(sizes, kills.SYNCHRONOUS_COMMIT_OFF, victims=("postgres",))
    doubled = await _weakened(sizes, "", victims=("decision",), weaken_probe=kills.INBOX_OFF)
    teeth = {"synchronous_commit_off": lost.lost, "inbox_off": doubled.doubled}
    return Proof(
        trials=told.count,
        failures=found.lost + found.doubled + found.missing,
        teeth=teeth,
        facts={
            "kills": 2 * sizes.kills,
            "lost": found.lost,
            "doubled": found.doubled,
            "missing": found.missing,
            "unanswered": told.unanswered_count,
        },
    )


async def _weakened(sizes: Sizes, script: str, *, victims: tuple[str, ...], weaken_probe: str = "") -> kills.Found:
    """What the same trial finds with a protection switched off in every service, or in the probe."""
    with temporary_folder() as folder:
        async with world(folder, people_count=50, env=ENV) as ready:
            await activate_noise(ready.services, trees_count=TREES_COUNT)
            if script:
                for service in SERVICES:
                    await kills.weaken(ready, service, script)
            _, found = await kills.prove(ready, kills=sizes.teeth_kills, victims=victims, weaken_probe=weaken_probe)
    return found


async def revoked(sizes: Sizes) -> Proof:
    """G7: no Decide invoked after Revoke returned uses the profile, none emits it, on three replicas under faults."""
    with temporary_folder() as folder:
        async with breakable(folder, replicas=REPLICAS) as found:
            deck = kinds_of_all(found.world.stack.replicas("decision"))
            tally, faults = await try_under_faults(
                found,
                draw(deck, FAULTS_SEED),
                decides=sizes.decides,
                revokes=sizes.revokes,
                faults_min=min(sizes.faults, len(deck)),
                seed=FAULTS_SEED,
            )
    with temporary_folder() as folder:
        async with breakable(folder, budget_ms=TEETH_BUDGET_MS, disposable=True) as found:
            caught, undrained = await bite(found)
    for ref in tally.refs:
        print(f"G7 violated: {ref}", file=sys.stderr)
    too_few_ranked = tally.ranked_share < sizes.ranked_share_min
    inflicted = Counter(f"faults_{window.fault.kind}".replace("-", "_") for window in faults.windows)
    return Proof(
        trials=tally.decides,
        failures=tally.p1 + tally.p2 + tally.stale + undrained + too_few_ranked,
        teeth=caught,
        facts={
            "violations_p1": tally.p1,
            "violations_p2": tally.p2,
            "residual_stalled": tally.stalled,
            "stale_refusals": tally.stale,
            "violations_p1_without_drain": undrained,
            "revokes": tally.revokes,
            "retries_after_revoke": tally.retries,
            "unanswered_decides": tally.unanswered,
            "unanswered_changes": tally.unknown,
            "unexpected_errors": tally.unexpected,
            "histories": tally.lives,
            "answers_outside_faults": tally.calm,
            "ranked_share_outside_faults": round(tally.ranked_share, 3),
            "faults": len(faults.windows),
            **inflicted,
        },
    )


async def replayed(sizes: Sizes) -> Proof:
    """G15: every decision replays to the identical slate; another seed or another model is caught."""
    with temporary_folder() as folder:
        async with world(folder, people_count=200, env=ENV) as ready:
            await activate_noise(ready.services, trees_count=TREES_COUNT)
            made = await replays.decide_all_kinds(ready, count=sizes.replays)
            ids = [decision_id for some in made.values() for decision_id in some]
            differing = await replays.replay(ready, ids)
            drawn = [*made.get("RANKED", []), *made.get("EXPLORED", [])][:200]
            seed_file = ready.stack.data_dir.secrets / "seed_key"
            seed_file.write_text(secrets.token_hex(32))
            await ready.stack.restart("decision")
            other_seed = await replays.replay(ready, drawn)
    facts = {label.lower(): float(len(some)) for label, some in made.items()}
    return Proof(trials=len(ids), failures=differing, teeth={"another_seed": other_seed}, facts=facts)


async def drawn_truly(sizes: Sizes) -> Proof:
    """Propensities: over many draws of the same inputs, entries appear as often as they say."""
    with temporary_folder() as folder:
        async with world(folder, people_count=1, env=ENV) as ready:
            await activate_noise(ready.services, trees_count=TREES_COUNT)
            found = await draws.draw(ready, draws=sizes.draws)
    wrong = draws.without_exploration(found)
    return Proof(
        trials=found.draws,
        failures=found.outside + (found.p_value < draws.P_VALUE_MIN),
        teeth={"exploration_forgotten": int(wrong.p_value < draws.P_VALUE_MIN)},
        facts={"p_value": found.p_value},
    )


async def told_their_own(sizes: Sizes) -> Proof:
    """G12: of reads that are cancelled at any moment no reply goes astray to another subject."""
    site = cancelled_reads.Site(purposes=(PURPOSE,), event_type="click", item_id="i0")
    with temporary_folder() as folder:
        async with world(folder, people_count=0, env=ENV) as ready:
            trial = await cancelled_reads.prepare(ready.stack, ready.services, site)
            found = await cancelled_reads.prove(trial, cancels=sizes.cancels, seed=CANCELS_SEED)
            teeth = await cancelled_reads.teeth(trial, cancels=sizes.teeth_cancels, seed=CANCELS_SEED)
    return Proof(
        trials=sum(storm.cancelled for storm in found.values()),
        failures=sum(storm.mixed for storm in found.values()),
        teeth=teeth,
        facts={
            "replies": sum(storm.answered for storm in found.values()),
            "failed": sum(storm.failed for storm in found.values()),
            **{f"cancelled_{name}": storm.cancelled for name, storm in found.items()},
        },
    )


async def granted_by_valid_alone(sizes: Sizes) -> Proof:
    """G13: a consent string that is not valid grants nothing; IAB's own strings are read as its libraries read them."""
    if sizes.vectors_dir is None:
        print("G13: no --vectors: only forged strings are tried", file=sys.stderr, flush=True)
    return await asyncio.to_thread(consent_strings.prove_strings, sizes.vectors_dir, sizes.strings, STRINGS_SEED)


async def erased(sizes: Sizes) -> Proof:
    """G11: erased means gone, from every file; what is left is what would be there without them."""
    with temporary_folder() as folder:
        return await erasure.prove(folder, people_count=sizes.subjects)


async def erased_though_late(sizes: Sizes) -> Proof:
    """G11 with each dependency of Decide late in turn: erased means gone."""
    with temporary_folder() as folder:
        return await late.prove(folder, people_count=sizes.late_subjects)


async def unstopped(sizes: Sizes) -> Proof:
    """G19: a row, event or message that cannot be read stops nobody; each is told."""
    with temporary_folder() as folder:
        return await poison.prove(folder, decides=sizes.poisoned_decides)


async def startable(sizes: Sizes) -> Proof:
    """No stored thing, unreadable or hostile, keeps a service from starting, serving and saying so."""
    with temporary_folder() as folder:
        return await bricks.prove(folder, apart=sizes.bricks_apart)


async def unharmed(sizes: Sizes) -> Proof:
    """G14, G20: a hostile model is refused, and neither harms decision nor keeps it from starting."""
    with temporary_folder() as folder:
        return await hostile_models.prove(folder, names=sorted(HOSTILE)[:: sizes.hostile_every])


async def unmerged(sizes: Sizes) -> Proof:
    """Merge and unmerge: a link that is taken back leaves everybody as they would be without it."""
    return await asyncio.to_thread(merges.prove, sizes.merges, sizes.teeth_merges, MERGES_SEED)


async def repeated(sizes: Sizes) -> Proof:
    """G18: what proves itself is the log's decision, whatever was retried, hedged or rendered twice."""
    with temporary_folder() as folder:
        async with world(folder, people_count=200, env=ENV, replicas={"decision": 2}) as ready:
            await activate_noise(ready.services, trees_count=TREES_COUNT)
            requests = Requests(ready.people, seed=RETRIES_SEED)

            def request_of(number: int) -> decision_pb.DecideRequest:
                return requests(number, deferred=number % 2 == 0)

            trial = retries.Trial(ready.stack, ready.services, request_of, seed=RETRIES_SEED)
            await retries.retried_while_held_up(trial, times=HELD_UP_TIMES)
            await trial.run(sizes.attempts, retries.ALL_HARMS)
            found = await trial.compare(replays=REPLAYED_COUNT)
            await ready.stack.become("decision", "overriding")
            wrong = retries.Trial(ready.stack, ready.services, request_of, seed=RETRIES_SEED)
            await retries.retried_while_held_up(wrong, times=HELD_UP_TIMES)
            caught = await wrong.compare(replays=0)
    return Proof(
        trials=found.attempts,
        failures=found.differing + found.foreign + found.not_replaying,
        teeth={"correction_overrides_others": caught.differing},
        facts=found.facts(),
    )


async def overloaded(sizes: Sizes) -> Proof:
    """G8: what is more than can be done costs nobody the answer that could be given; each is in time, or none."""
    with temporary_folder() as folder:
        return await overload.prove(folder, laps=sizes.overload_laps, duration_s=sizes.overload_s)


async def undisturbed(sizes: Sizes) -> Proof:
    """G21: a cancelled, slow or greedy client changes nobody else's answers."""
    with temporary_folder() as folder:
        return await neighbours.prove(folder, laps=sizes.neighbours_laps, duration_s=sizes.neighbours_s)


PROOFS: dict[str, Callable[[Sizes], Awaitable[Proof]]] = {
    "G1_G3_G10": survive,
    "G7": revoked,
    "G11": erased,
    "G12": told_their_own,
    "G13": granted_by_valid_alone,
    "G15": replayed,
    "propensity": drawn_truly,
    "retries": repeated,
    "merge_unmerge": unmerged,
    "late": erased_though_late,
    "poison": unstopped,
    "bricks": startable,
    "overload": overloaded,
    "neighbours": undisturbed,
    "hostile_models": unharmed,
}


async def prove(names: list[str], sizes: Sizes) -> dict[str, Proof]:
    """Try the promises one after another."""
    found = {}
    for name in names:
        began = time.monotonic()
        found[name] = await PROOFS[name](sizes)
        print(f"{name}: {found[name]} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Try, print, and say by the exit status whether all of it held."""
    parser = argparse.ArgumentParser(prog="python -m bench.prove", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="GUARANTEE", help=f"only these: {', '.join(PROOFS)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--vectors", type=Path, metavar="DIR", help=consent_strings.VECTORS_HELP)
    asked = parser.parse_args()
    if asked.vectors is not None and not asked.vectors.is_dir():
        parser.error(f"--vectors {asked.vectors} is no folder")
    unknown = set(asked.names) - set(PROOFS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(PROOFS)}")
    found = asyncio.run(prove(asked.names or list(PROOFS), Sizes(quick=asked.quick, vectors_dir=asked.vectors)))
    print(json.dumps({name: proof.to_json() for name, proof in found.items()}))
    return 0 if all(proof.holds for proof in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
