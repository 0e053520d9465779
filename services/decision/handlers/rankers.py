"""Models on their way to deciding: signed, tried, loaded; and off again where one turns out slow or wrong.

Nothing here keeps a replica from starting or from following what is applied: a model that takes long to try is waited
for shortly and then loaded beside, and one that may not decide leaves its place to what decided before it, or to
popularity.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import structlog

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.errors import Kind, ServiceError
from services.chassis.signing import is_signed
from services.decision.domain.release import Model, NewModel, Standing, refused, signed_text
from services.decision.domain.serving import Ranker
from services.decision.handlers.ports import ModelLoader, ModelStore

# A start waits so long for its models. One that was tried before is loaded in a fraction of this; one that was not is
# tried beside.
WAIT_S = 5.0
# So long where something decides meanwhile: whatever else is applied, a kill switch say, waits behind it.
HELD_WAIT_S = 0.3
# So soon what could not be tried for want of a process, or of the database, is tried again.
AGAIN_S = 10.0

_log = structlog.get_logger(__name__)


class Vetting:
    """Says which models may be loaded, and loads them.

    Args:
        public_keys: of the keys that models may be signed with, 32 bytes each; with none, no model is taken in.
    """

    def __init__(self, models: ModelStore, loader: ModelLoader, public_keys: Sequence[bytes]) -> None:
        self._models = models
        self._loader = loader
        self._public_keys = public_keys
        # A trial takes a process and its memory: one at a time.
        self._turn = asyncio.Lock()

    def require_signed(self, model: NewModel) -> None:
        """Returns when the site's model key signed it.

        Raises:
            ServiceError: INVALID (MODEL_REFUSED); FAILED_PRECONDITION (NO_MODEL_KEY).
        """
        if not self._public_keys:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "NO_MODEL_KEY",
                "decision knows no key that models are signed with; set COMITY_DECISION_MODEL_PUBLIC_KEY_FILE to what "
                "`comity models key` prints",
            )
        if not model.signature:
            raise refused("is not signed; sign it with `comity models sign`")
        signed = signed_text(model.version)
        if not any(is_signed(signed, model.signature, key) for key in self._public_keys):
            raise refused("is not signed by the site's model key, or under another name; sign it with that key")

    async def require_sound(self, model: NewModel, *, again: bool = False) -> None:
        """Returns when nothing is wrong with the file.

        Args:
            again: what was found wrong with it before is looked for again; for somebody who waits for what is found.

        Raises:
            ServiceError: INVALID (MODEL_REFUSED); UNAVAILABLE (MODEL_NOT_TRIED).
        """
        # What was tried before does not wait for what was not.
        problem = await self._models.verdict(model, self._loader.checker)
        if problem is None or (problem and again):
            async with self._turn:
                problem = await self._tried(model, again=again)
        if problem:
            raise refused(problem)

    async def _tried(self, model: NewModel, *, again: bool) -> str:
        """What is wrong with the file: as somebody found while this waited for its turn, else as a trial finds now."""
        checker = self._loader.checker
        found = None if again else await self._models.verdict(model, checker)
        if found is None:
            found = await asyncio.to_thread(self._loader.try_out, model)
            await self._models.remember_verdict(model, checker, found)
        return found

    async def require_fit(self, model: NewModel, *, again: bool = False) -> None:
        """Returns when a kept model may decide: one of before models had to be signed is trusted for being that.

        Raises:
            ServiceError: as of require_signed and require_sound.
        """
        if model.signature or not model.registered_unsigned:
            self.require_signed(model)
        # A large file takes longer to hash than a Decide may.
        await asyncio.to_thread(model.require_whole)
        await self.require_sound(model, again=again)

    async def load(self, model: NewModel) -> Ranker:
        """A kept model, ready to score.

        Raises:
            ServiceError: as of require_fit.
        """
        await self.require_fit(model)
        return await asyncio.to_thread(self._loader.load, model)


class Rankers:
    """The models that decide now; of each name the one that was chosen, or what decided before it."""

    def __init__(self, models: ModelStore, vetting: Vetting) -> None:
        self._models = models
        self._vetting = vetting
        self._loads: dict[str, asyncio.Task[Ranker]] = {}
        # Of a round: versions that were wanted in it, and how long it waits.
        self._asked: set[str] = set()
        self._until_s = 0.0
        # Why each must not decide, by version; and of those that the database has to be told of yet.
        self._refused: dict[str, str] = {}
        self._to_tell: dict[str, str] = {}
        # When to try again what could not be tried, by version.
        self._again_at_s: dict[str, float] = {}
        self._standing: Standing | None = None
        self.is_settled = True

    def why_refused(self, version: str) -> str:
        """Why this replica does not let the model decide; empty: nothing is wrong with it."""
        return self._refused.get(version, "")

    def take_off(self, ranker: Ranker, why: str) -> None:
        """Let this model decide no more, from the next refresh on, here and on every replica.

        Args:
            why: without anything that the model's maker wrote.
        """
        ranker.stop()
        if ranker.version not in self._refused:
            _log.error("model taken off", model=ranker.version, reason=why)
            self._refused[ranker.version] = self._to_tell[ranker.version] = why
            self.is_settled = False

    async def of(self, now: Standing, held: Mapping[str, Ranker]) -> dict[str, Ranker]:
        """The rankers by name; where one is still being tried, the one that was held stays."""
        if self._standing is None or now.models_at != self._standing.models_at:
            # Somebody activated a model, perhaps one that was mended; what was found before is remembered elsewhere.
            self._refused = dict(self._to_tell)
            self._again_at_s.clear()
        self._standing, self.is_settled = now, True
        await self._tell()
        found: dict[str, Ranker] = {}
        stood_in = False
        self._asked.clear()
        wait_s = HELD_WAIT_S if held.keys() >= {name for name, _ in now.active_models} else WAIT_S
        self._until_s = time.monotonic() + wait_s
        begun = [self._begin(name, sha256, now, held.get(name)) for name, sha256 in now.active_models]
        if tasks := [task for task in begun if task is not None]:
            await asyncio.wait(tasks, timeout=wait_s)
        for name, sha256 in sorted(now.active_models):
            ranker = await self._one(name, sha256, now, held.get(name))
            if ranker is not None:
                found[name] = ranker
            stood_in |= bool(self._why_not(f"{name}@{sha256}", now))
        set_alarm(Alarm.MODEL_STOPPED, stood_in)
        self._forget_loads()
        return found

    def _begin(self, name: str, sha256: str, now: Standing, held: Ranker | None) -> asyncio.Task[Ranker] | None:
        """Have the chosen model loaded, all of them at once: one that is tried holds up none that was."""
        version = f"{name}@{sha256}"
        is_held = held is not None and held.version == version
        is_wanted = not is_held and not self._why_not(version, now) and version not in self._loads
        if not is_wanted or time.monotonic() < self._again_at_s.get(version, 0.0):
            return None
        task = self._loads[version] = asyncio.create_task(self._load(name, sha256))
        return task

    async def _one(self, name: str, sha256: str, now: Standing, held: Ranker | None) -> Ranker | None:
        """The ranker of a name: the chosen one, else the newest before it that may decide."""
        if held is not None and self._why_not(held.version, now):
            held = None
        chosen = f"{name}@{sha256}"
        if not self._why_not(chosen, now):
            ranker = await self._loaded(name, sha256, held)
            if ranker is not None or not self._why_not(chosen, now):
                return ranker or held
        for model in await self._before(name, sha256):
            if not self._why_not(model.version, now):
                ranker = await self._loaded(name, model.sha256, held)
                if ranker is not None or not self._why_not(model.version, now):
                    return ranker or held
        return None

    def _why_not(self, version: str, now: Standing) -> str:
        return self._refused.get(version) or ("was taken off" if version in now.stopped_models else "")

    async def _before(self, name: str, sha256: str) -> Iterable[Model]:
        """Models of the name that decided before, and read what the chosen one reads; the last that did comes first."""
        models = [model for model in await self._models.all() if model.name == name]
        reads = {model.feature_set_version for model in models if model.sha256 == sha256}
        before = [
            (model.activated_at, model)
            for model in models
            if model.activated_at is not None and model.feature_set_version in reads and model.sha256 != sha256
        ]
        return [model for _, model in sorted(before, key=lambda one: one[0], reverse=True)]

    async def _loaded(self, name: str, sha256: str, held: Ranker | None) -> Ranker | None:
        """The model if it can be had now; else it is refused, or comes later."""
        version = f"{name}@{sha256}"
        if held is not None and held.version == version:
            return held
        if time.monotonic() < self._again_at_s.get(version, 0.0):
            self.is_settled = False
            return None
        self._asked.add(version)
        task = self._loads.get(version)
        if task is None:
            task = self._loads[version] = asyncio.create_task(self._load(name, sha256))
            await asyncio.wait({task}, timeout=max(0.0, self._until_s - time.monotonic()))
        if not task.done():
            self.is_settled = False
            return None
        del self._loads[version]
        error = task.exception()
        if error is None:
            return task.result()
        self._judge(version, error)
        return None

    def _judge(self, version: str, error: BaseException) -> None:
        """Try again later what time may mend; all else must not decide."""
        if isinstance(error, ServiceError) and error.passes:
            self._again_at_s[version], self.is_settled = time.monotonic() + AGAIN_S, False
            _log.warning("model not loaded yet", model=version, reason=error.reason)
            return
        self._refused[version] = "cannot be loaded"
        if isinstance(error, ServiceError):
            self._refused[version] = error.problems[0].problem if error.problems else error.message
        _log.error("model refused", model=version, reason=self._refused[version], exc_info=error)

    async def _load(self, name: str, sha256: str) -> Ranker:
        model = await self._models.data(name, sha256)
        if model is None:
            raise refused("is not kept any more; train it again")
        return await self._vetting.load(model)

    async def _tell(self) -> None:
        """Have every replica know what was taken off here."""
        for version, why in list(self._to_tell.items()):
            name, _, sha256 = version.rpartition("@")
            try:
                await self._models.stop(name, sha256, why)
            except ServiceError as error:
                self.is_settled = False
                _log.warning("not told yet", model=version, reason=error.reason)
                return
            del self._to_tell[version]

    def _forget_loads(self) -> None:
        """Drop what was loaded beside and nobody wants any more."""
        for version, task in list(self._loads.items()):
            if task.done() and version not in self._asked:
                del self._loads[version]
                task.exception()
