"""Which models decide: signed, tried once, taken off where they are wrong, and the one before in their place."""

import asyncio
import threading
from dataclasses import replace

import pytest

from services.chassis import alarms
from services.chassis.alarms import Alarm
from services.chassis.errors import Kind, ServiceError
from services.chassis.signing import signing_key
from services.decision.domain.release import NewModel
from services.decision.handlers import rankers
from services.decision.handlers.rankers import Vetting
from tests.unit.decision.registry import PUBLIC_KEY, Loader, Registry, Replica, new_model
from tests.waiting import eventually

OLD, NEW = new_model("old"), new_model("new")
OF_BEFORE = replace(new_model("of before", key=None), registered_unsigned=True)
OTHER_KEY = signing_key("models", b"o" * 32)


class World:
    """A registry, what tries its models, and one replica."""

    def __init__(self) -> None:
        self.registry, self.loader = Registry(), Loader()
        self.replica = Replica(self.registry, self.loader)

    def another(self) -> Replica:
        return Replica(self.registry, self.loader)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_chosen_model_decides(world: World) -> None:
    """Without an alarm."""
    world.registry.decides(OLD, NEW)
    assert await world.replica.follow() == {"ranker": NEW.version}
    assert Alarm.MODEL_STOPPED not in alarms.standing()


async def test_a_model_is_tried_once_by_each_checker(world: World) -> None:
    """A start, a restart and a second replica do not wait for a trial that was made; a newer checker tries again."""
    world.registry.decides(OLD)
    for replica in (world.replica, world.another(), world.another()):
        assert await replica.follow() == {"ranker": OLD.version}
    assert world.loader.tried == [OLD.onnx]
    world.loader.checker = "checker-2"
    assert await world.another().follow() == {"ranker": OLD.version}
    assert len(world.loader.tried) == 2


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(new_model("new", key=None), id="unsigned"),
        pytest.param(new_model("new", key=OTHER_KEY), id="by_another_key"),
        pytest.param(replace(new_model("new"), signature=new_model("new", name="x").signature), id="of_another_name"),
        pytest.param(replace(new_model("new"), signature=b"no signature"), id="no_signature"),
        pytest.param(replace(OF_BEFORE, signature=b"x" * 64), id="of_before_with_a_wrong_one"),
        pytest.param(replace(new_model("new"), onnx=b"other bytes"), id="other_bytes"),
    ],
)
async def test_a_model_that_is_not_the_signed_one_does_not_decide(world: World, bad: NewModel) -> None:
    """At load: it is not even tried, the one before decides, and the alarm stands until somebody chooses another."""
    world.registry.decides(OLD, bad)
    assert await world.replica.follow() == {"ranker": OLD.version}
    assert world.loader.tried == [OLD.onnx]
    assert Alarm.MODEL_STOPPED in alarms.standing()
    assert world.replica.rankers.why_refused(bad.version)
    world.registry.decides(OLD)
    assert await world.replica.follow() == {"ranker": OLD.version}
    assert Alarm.MODEL_STOPPED not in alarms.standing()


async def test_a_model_of_before_signatures_decides(world: World) -> None:
    """The registry's own record says that it was kept then; nobody has signed it."""
    world.registry.decides(OF_BEFORE)
    assert await world.replica.follow() == {"ranker": OF_BEFORE.version}


async def test_without_a_key_nothing_signed_is_taken(world: World) -> None:
    """What cannot be checked is not believed, and the remedy is told."""
    vetting = Vetting(world.registry, world.loader, ())
    for model in (NEW, new_model("new", key=None)):
        with pytest.raises(ServiceError, match="COMITY_DECISION_MODEL_PUBLIC_KEY_FILE"):
            vetting.require_signed(model)
    await vetting.require_fit(OF_BEFORE)


async def test_one_of_several_keys_is_enough() -> None:
    """While keys are changed both count."""
    keys = [OTHER_KEY.public_key().public_bytes_raw(), PUBLIC_KEY]
    Vetting(Registry(), Loader(), keys).require_signed(NEW)


async def test_a_model_that_its_trial_refuses_does_not_decide(world: World) -> None:
    """Nor after a restart; nothing before it means popularity."""
    world.loader.problems[NEW.onnx] = "takes too long"
    world.registry.decides(NEW)
    assert await world.replica.follow() == {}
    assert await world.another().follow() == {}
    assert world.loader.tried == [NEW.onnx]
    assert world.replica.rankers.why_refused(NEW.version) == "takes too long"


async def test_whoever_waits_for_a_refusal_has_the_model_tried_again(world: World) -> None:
    """A refusal may have been the machine's doing; that nothing is wrong is not asked again."""
    vetting = Vetting(world.registry, world.loader, [PUBLIC_KEY])
    world.loader.problems[NEW.onnx] = "takes too long"
    with pytest.raises(ServiceError, match="takes too long"):
        await vetting.require_fit(NEW, again=True)
    world.loader.problems.clear()
    await vetting.require_fit(NEW, again=True)
    await vetting.require_fit(NEW, again=True)
    assert len(world.loader.tried) == 2


async def test_a_model_that_is_taken_off_leaves_its_place_to_the_one_before(world: World) -> None:
    """Here at once, on every replica and after a restart, with the reason kept; until somebody activates it again."""
    world.registry.decides(OLD, NEW)
    other = world.another()
    assert await world.replica.follow() == await other.follow() == {"ranker": NEW.version}
    world.replica.rankers.take_off(world.replica.held["ranker"], "raises")
    assert not world.replica.rankers.is_settled
    for replica in (world.replica, other, world.another()):
        assert await replica.follow() == {"ranker": OLD.version}
    assert world.registry.stopped == {NEW.version: "raises"}
    assert Alarm.MODEL_STOPPED in alarms.standing()
    await world.registry.activate(NEW.name, NEW.sha256, "")
    for replica in (world.replica, other):
        assert await replica.follow() == {"ranker": NEW.version}
    assert Alarm.MODEL_STOPPED not in alarms.standing()


async def test_models_that_are_taken_off_one_after_the_other_end_at_popularity(world: World) -> None:
    """None comes back by itself."""
    world.registry.decides(OLD, NEW)
    for left in (OLD.version, None):
        await world.replica.follow()
        world.replica.rankers.take_off(world.replica.held["ranker"], "raises")
        assert (await world.replica.follow()).get("ranker") == left
    assert await world.another().follow() == {}


async def test_a_model_of_other_features_stands_in_for_none(world: World) -> None:
    """Its columns mean something else."""
    foreign = replace(OLD, feature_set_version="other")
    world.registry.decides(foreign, NEW)
    world.loader.problems[NEW.onnx] = "is wrong"
    assert await world.replica.follow() == {}


async def test_what_was_taken_off_while_the_database_was_away_is_told_later(world: World) -> None:
    """It decides no more meanwhile."""
    world.registry.decides(NEW)
    await world.replica.follow()
    world.replica.rankers.take_off(world.replica.held["ranker"], "raises")
    standing, world.registry.down = world.registry.standing(), True
    with pytest.raises(ServiceError):
        await world.replica.rankers.of(standing, world.replica.held)
    assert not world.replica.rankers.is_settled
    world.registry.down = False
    assert await world.replica.follow() == {}
    assert world.registry.stopped == {NEW.version: "raises"}


async def test_a_trial_that_takes_long_holds_up_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start goes on without the model, a running replica with the one before; it decides once it was tried."""
    monkeypatch.setattr(rankers, "WAIT_S", 0.05)
    world.registry.decides(OLD)
    await world.replica.follow()
    world.loader.may_end.clear()
    world.registry.decides(NEW)
    assert await world.replica.follow() == {"ranker": OLD.version}
    fresh = world.another()
    assert await fresh.follow() == {}
    assert not fresh.rankers.is_settled
    world.loader.may_end.set()

    async def decides() -> bool:
        return await world.replica.follow() == await fresh.follow() == {"ranker": NEW.version}

    await eventually(decides)


async def test_running_replica_waits_shortly_for_a_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something decides meanwhile, and what is applied next must not stand behind a trial; a start may wait longer."""
    monkeypatch.setattr(rankers, "WAIT_S", 3600.0)
    world.registry.decides(OLD)
    await world.replica.follow()
    world.loader.may_end.clear()
    world.registry.decides(NEW)
    try:
        async with asyncio.timeout(60):
            assert await world.replica.follow() == {"ranker": OLD.version}
    finally:
        world.loader.may_end.set()


async def test_model_that_several_wait_for_is_tried_once(world: World) -> None:
    """A refresh, an activation and a replay of a new model come at once; the second finds what the first found."""
    vetting = Vetting(world.registry, world.loader, [PUBLIC_KEY])
    await asyncio.gather(*(vetting.require_fit(NEW) for _ in range(3)))
    assert world.loader.tried == [NEW.onnx]


async def test_file_of_a_model_is_hashed_beside_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes longer than a Decide may."""
    hashed_in: list[threading.Thread] = []
    monkeypatch.setattr(NewModel, "require_whole", lambda _: hashed_in.append(threading.current_thread()))
    world.registry.decides(NEW)
    assert await world.replica.follow() == {"ranker": NEW.version}
    assert hashed_in
    assert threading.current_thread() not in hashed_in


async def test_a_model_that_could_not_be_tried_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """That there was no process says nothing of it: no alarm, and the one before decides meanwhile."""
    monkeypatch.setattr(rankers, "AGAIN_S", 0.0)
    world.registry.decides(OLD)
    await world.replica.follow()
    world.loader.not_tried = True
    world.registry.decides(NEW)
    assert await world.replica.follow() == {"ranker": OLD.version}
    assert not world.replica.rankers.is_settled
    assert Alarm.MODEL_STOPPED not in alarms.standing()
    world.loader.not_tried = False
    assert await world.replica.follow() == {"ranker": NEW.version}
    assert world.replica.rankers.is_settled


async def test_one_model_is_tried_at_a_time(world: World) -> None:
    """Each takes a process and its memory."""
    vetting = Vetting(world.registry, world.loader, [PUBLIC_KEY])
    world.loader.may_end.clear()
    models = [new_model(str(number)) for number in range(8)]
    waiting = [asyncio.create_task(vetting.require_sound(model)) for model in models]

    async def one_is_tried() -> bool:
        return len(world.loader.tried) >= 1

    await eventually(one_is_tried)
    assert len(world.loader.tried) == 1
    world.loader.may_end.set()
    await asyncio.gather(*waiting)
    assert len(world.loader.tried) == 8


@pytest.mark.parametrize("kind", [Kind.INVALID, Kind.UNAVAILABLE])
async def test_a_second_name_is_not_held_up_by_a_refused_one(world: World, kind: Kind) -> None:
    """Each name is followed by itself."""
    other = new_model("other", name="other")
    world.registry.decides(other, NEW)
    world.loader.problems[NEW.onnx] = "is wrong"
    world.loader.not_tried = kind is Kind.UNAVAILABLE
    await world.replica.follow()
    world.loader.not_tried = False
    rankers_of_other = world.another()
    assert (await rankers_of_other.follow()).get("other") == other.version
