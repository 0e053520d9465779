"""A restored backup: whoever was erased or took consent back since stays so, and every other decision replays."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from comity.decision.v1 import decision_service_pb2 as decision_pb
from typer.testing import CliRunner

from cli.bundle import apply_bundle
from cli.connections import Services
from cli.main import app
from cli.stack import Stack, look, temporary_folder
from tests.e2e.conftest import ROOMY
from tests.e2e.erasing import erase
from tests.e2e.people import AWAY, CALL_S, RECOVERY_S, Person, ranked_person, ranking_shop, reason
from tests.waiting import eventually

T = TypeVar("T")


def test_restored_stack_ranks_nobody_who_refused_or_was_erased_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has it forgotten anything else. Without the journal it would rank both, so it asks before it does that."""
    with temporary_folder() as folder:
        monkeypatch.setenv("COMITY_JOURNAL_DIR", str(folder / "journal"))
        data_dir, backup = folder / "stack", folder / "backup"
        stays, leaves, gone, decisions = _up(data_dir, _three_people)
        assert _comity("backup", f"--to={backup}", data_dir=data_dir)["journal_entries"] == 0
        _up(data_dir, lambda services: _leave(services, stays, leaves, gone, data_dir))

        assert _comity("restore", f"--from={backup}", data_dir=data_dir)["reason"] == "DATA_DIR_EXISTS"
        told = _comity("restore", f"--from={backup}", "--replace", data_dir=data_dir)
        # Of the erased person every purpose is revoked as well.
        assert (told["refusals"] > 1, told["erasures"]) == (True, 1)
        refused = ["RANKED", "DEFAULT/NO_CONSENT", "DEFAULT/NO_CONSENT"]
        seen = _up(data_dir, lambda services: _answers(services, decisions, [stays, leaves, gone], until=refused))
        assert [answers for answers in seen if "RANKED" in answers[1:]] == []

        next((folder / "journal").glob("*.journal")).unlink()
        declined = _comity("restore", f"--from={backup}", "--replace", data_dir=data_dir)
        assert (declined["reason"], "there is no journal" in declined["message"]) == ("JOURNAL_MISSING", True)
        assert _comity("restore", f"--from={backup}", "--replace", "--yes", data_dir=data_dir)["journal"] == ""
        ranked = ["RANKED"] * 3
        assert _up(data_dir, lambda services: _answers(services, decisions, [stays, leaves, gone], until=ranked))


def _up(data_dir: Path, work: Callable[[Services], Awaitable[T]]) -> T:
    """The result of *work* on the stack, which runs as long as that takes."""

    async def run() -> T:
        async with (
            Stack(data_dir, disposable=True, env=ROOMY) as stack,
            Services(stack.addresses) as services,
        ):
            return await work(services)

    return asyncio.run(run())


def _comity(command: str, *arguments: str, data_dir: Path) -> Any:
    """What the command prints with --json: its answer, or its error."""
    result = CliRunner().invoke(app, [command, *arguments, f"--data-dir={data_dir}", "--json"])
    if result.exit_code == 0:
        return json.loads(result.stdout)
    return json.loads(result.stderr.splitlines()[-1])["error"]


async def _three_people(services: Services) -> tuple[Person, Person, Person, list[str]]:
    await apply_bundle(ranking_shop(), services)
    people = [await ranked_person(services) for _ in range(3)]
    decisions = [(await person.decide()).decisions[0].decision_id for person in people]
    return (*people, decisions)  # type: ignore[return-value]


async def _leave(services: Services, stays: Person, leaves: Person, gone: Person, data_dir: Path) -> None:
    """One takes consent back, one is erased; returns when the journal has both."""
    for person in (stays, leaves, gone):
        person.services = services
    await leaves.revoke()
    await erase(gone)

    async def journaled() -> bool:
        journal = (await look(data_dir)).journal
        return journal is not None and journal.entries > 1 and journal.lag_s == 0.0

    await eventually(journaled)


async def _answers(
    services: Services, decisions: list[str], people: list[Person], *, until: list[str]
) -> list[list[str]]:
    """What they are shown from the first moment on, until it is what it must be; and decisions from before replay."""
    seen: list[list[str]] = []

    async def well() -> bool:
        try:
            seen.append([reason((await person.decide()).decisions[0]) for person in people])
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                raise
        return bool(seen) and seen[-1] == until

    for person in people:
        person.services = services
    await eventually(well, within_s=RECOVERY_S)
    for decision_id in decisions[:2]:
        request = decision_pb.ReplayRequest(decision_id=decision_id)
        replayed = await services.decision.Replay(request, timeout=CALL_S)
        assert replayed.identical, list(replayed.differences)
    return seen
