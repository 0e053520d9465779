"""A registry of models and what tries them, in memory: for what is done with models, whatever is in them."""

import hashlib
import itertools
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.errors import Kind, ServiceError
from services.chassis.signing import signing_key
from services.decision.domain.release import Model, NewModel, Standing, signed_text
from services.decision.domain.serving import Ranker
from services.decision.handlers.rankers import Rankers, Vetting
from tests.unit.decision.fakes import DEAD, FakeRanker
from tests.unit.decision.world import FEATURE_SET

KEY = signing_key("models", b"k" * 32)
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
START = datetime(2026, 11, 1, tzinfo=UTC)
NOT_TRIED = ServiceError(Kind.UNAVAILABLE, "MODEL_NOT_TRIED", "as in the test")


def new_model(content: str, *, name: str = "ranker", key: Ed25519PrivateKey | None = KEY) -> NewModel:
    """A model of this content, signed with the key if there is one."""
    onnx = content.encode()
    model = NewModel(name, hashlib.sha256(onnx).hexdigest(), FEATURE_SET.version, 5, onnx)
    return model if key is None else replace(model, signature=key.sign(signed_text(model.version)))


class Registry:
    """handlers.ports.ModelStore, and the part of the standing that is about models."""

    def __init__(self) -> None:
        self.models: dict[str, NewModel] = {}
        self.chosen: dict[str, str] = {}
        self.stopped: dict[str, str] = {}
        self.verdicts: dict[str, str] = {}
        self.activations: list[tuple[str, datetime]] = []
        self.at: datetime | None = None
        self.down = False
        self._times = itertools.count()

    def standing(self) -> Standing:
        """What stands, of models."""
        chosen = frozenset((name, version.partition("@")[2]) for name, version in self.chosen.items())
        return Standing("", 0, chosen, frozenset(self.stopped), self.at)

    def decides(self, *models: NewModel) -> None:
        """Keep the models and choose one after the other."""
        for model in models:
            self.models[model.version] = model
            self._moment()
            assert self.at is not None, "it was just set"
            self.chosen[model.name] = model.version
            self.activations.append((model.version, self.at))

    async def register(self, model: NewModel) -> bool:
        is_new = model.version not in self.models
        self.models[model.version] = model
        return is_new

    async def activate(self, name: str, sha256: str, feature_set_version: str) -> None:
        self.stopped.pop(f"{name}@{sha256}", None)
        self.decides(self.models[f"{name}@{sha256}"])

    async def all(self) -> list[Model]:
        self._up()
        at = dict(self.activations)
        return [
            Model(
                name=model.name,
                sha256=model.sha256,
                feature_set_version=model.feature_set_version,
                registered_at=START,
                active=self.chosen.get(model.name) == model.version,
                metrics={},
                activated_at=at.get(model.version),
                stopped_why=self.stopped.get(model.version, ""),
            )
            for model in self.models.values()
        ]

    async def data(self, name: str, sha256: str) -> NewModel | None:
        self._up()
        return self.models.get(f"{name}@{sha256}")

    async def stop(self, name: str, sha256: str, why: str) -> None:
        self._up()
        self.stopped.setdefault(f"{name}@{sha256}", why)
        self._moment()

    async def verdict(self, model: NewModel, checker: str) -> str | None:
        self._up()
        return self.verdicts.get(f"{model.sha256} by {checker}")

    async def remember_verdict(self, model: NewModel, checker: str, problem: str) -> None:
        self._up()
        self.verdicts[f"{model.sha256} by {checker}"] = problem

    def _moment(self) -> None:
        self.at = START + timedelta(seconds=next(self._times))

    def _up(self) -> None:
        if self.down:
            raise DEAD


class Loader:
    """handlers.ports.ModelLoader: says of the content what it is told to."""

    checker = "checker-1"

    def __init__(self) -> None:
        self.problems: dict[bytes, str] = {}
        self.tried: list[bytes] = []
        self.not_tried = False
        # Trials end once this is set.
        self.may_end = threading.Event()
        self.may_end.set()

    def try_out(self, model: NewModel) -> str:
        self.tried.append(model.onnx)
        self.may_end.wait()
        if self.not_tried:
            raise NOT_TRIED
        return self.problems.get(model.onnx, "")

    def load(self, model: NewModel) -> Ranker:
        ranker = FakeRanker()
        ranker.version = model.version
        return ranker


class Replica:
    """The models of one replica over a registry."""

    def __init__(self, registry: Registry, loader: Loader) -> None:
        self.registry = registry
        self.rankers = Rankers(registry, Vetting(registry, loader, [PUBLIC_KEY]))
        self.held: dict[str, Ranker] = {}

    async def follow(self) -> dict[str, str]:
        """Take over what stands; the version that decides, by name."""
        self.held = await self.rankers.of(self.registry.standing(), self.held)
        return {name: ranker.version for name, ranker in self.held.items()}
