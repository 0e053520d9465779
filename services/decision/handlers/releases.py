"""Models on their way: received whole, checked, kept, activated."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import BinaryIO, TypeAlias

from services.chassis.errors import Kind, ServiceError, invalid
from services.decision.domain.plan import CompiledSite
from services.decision.domain.release import MODEL_BYTES_MAX, Model, NewModel
from services.decision.domain.training_members import fingerprint
from services.decision.handlers.ports import ModelStore
from services.decision.handlers.rankers import WAIT_S, Rankers, Vetting
from services.decision.handlers.refresh import AWAIT_POLL_S, Refresher

# A set of them takes some hundred megabytes while a model is registered.
TRAINING_MEMBERS_MAX = 2_000_000

# The largest file and a million members come in seconds; who sends slower than this keeps others from registering.
UPLOAD_S_MAX = 120.0
# Between two messages of an upload.
IDLE_S_MAX = 10.0
BUSY_RETRY_S = 5.0

# A chunk of the file, or members it was trained on.
Part: TypeAlias = bytes | tuple[str, ...]


class RegisterModel:
    """Takes a model in. A model that does not fit is refused whole, and nothing of it is kept.

    One at a time: an upload takes disk, its members memory, its trial a process.
    """

    def __init__(self, models: ModelStore, vetting: Vetting, refresher: Refresher) -> None:
        self._models = models
        self._vetting = vetting
        self._refresher = refresher
        self._turn = asyncio.Lock()

    async def __call__(self, announced: NewModel, parts: AsyncIterator[Part]) -> tuple[NewModel, bool]:
        """The model, and whether it had been registered before.

        Args:
            announced: the model without its bytes.
            parts: chunks of the file, in order, and members that it was trained on, anywhere between them.

        Raises:
            ServiceError: INVALID, naming the field and the remedy; EXHAUSTED (REGISTRATION_UNDER_WAY); DEADLINE
                (UPLOAD_TOO_SLOW); UNAVAILABLE (MODEL_NOT_TRIED, NO_ROOM_FOR_UPLOAD).
        """
        _check_columns(announced, _site_of(self._refresher))
        self._vetting.require_signed(announced)
        if self._turn.locked():
            raise ServiceError(
                Kind.EXHAUSTED,
                "REGISTRATION_UNDER_WAY",
                "another model is being registered, one at a time is taken; try again in a few seconds",
                retry_after_s=BUSY_RETRY_S,
            )
        async with self._turn:
            onnx, trained_on = await _receive(parts, announced.sha256)
            model = replace(announced, onnx=onnx, trained_on=trained_on)
            await self._vetting.require_sound(model, again=True)
            return model, not await self._models.register(model)


class ActivateModel:
    """Lets a registered model decide."""

    def __init__(self, models: ModelStore, vetting: Vetting, refresher: Refresher) -> None:
        self._models = models
        self._vetting = vetting
        self._refresher = refresher

    async def __call__(self, name: str, sha256: str) -> str:
        """The model's version. This replica decides with it then, unless loading takes very long; the others follow.

        One that was taken off, or refused when it was loaded, is tried anew.

        Raises:
            ServiceError: NOT_FOUND (MODEL_UNKNOWN); INVALID (MODEL_REFUSED); FAILED_PRECONDITION; UNAVAILABLE.
        """
        await self._refresher.refresh()
        site = _site_of(self._refresher)
        model = await self._models.data(name, sha256)
        if model is not None:
            await self._vetting.require_fit(model, again=True)
        await self._models.activate(name, sha256, site.layout.feature_set.version)
        await self._until_decides(name, f"{name}@{sha256}")
        return f"{name}@{sha256}"

    async def _until_decides(self, name: str, version: str) -> None:
        """Returns once this replica decides with the model, or has had the time for it."""
        until_s = time.monotonic() + WAIT_S
        await self._refresher.refresh()
        while time.monotonic() < until_s:
            ranker = self._refresher.serving().rankers.get(name)
            if ranker is not None and ranker.version == version:
                return
            await asyncio.sleep(AWAIT_POLL_S)
            await self._refresher.refresh()


class GetModel:
    """A registered model's file."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models

    async def __call__(self, name: str, sha256: str) -> bytes:
        """The ONNX file.

        Raises:
            ServiceError: NOT_FOUND (MODEL_UNKNOWN).
        """
        model = await self._models.data(name, sha256)
        if model is None:
            raise ServiceError(Kind.NOT_FOUND, "MODEL_UNKNOWN", "name, sha256: no such model was registered")
        return model.onnx


class ListModels:
    """The registered models."""

    def __init__(self, models: ModelStore, rankers: Rankers, refresher: Refresher) -> None:
        self._models = models
        self._rankers = rankers
        self._refresher = refresher

    async def __call__(self) -> list[Model]:
        """Every registered model, oldest first; active is what ranks now."""
        return [self._told(model) for model in await self._models.all()]

    def _told(self, model: Model) -> Model:
        serving = self._refresher.serving()
        site, ranker = serving.compiled, serving.rankers.get(model.name)
        why = model.stopped_why or self._rankers.why_refused(model.version)
        # Until it is loaded, the chosen one is the one that ranks.
        active = model.active and not why if ranker is None else ranker.version == model.version
        if active and site is not None and model.feature_set_version != site.layout.feature_set.version:
            return replace(model, active=False, stopped_fitting=True, stopped_why=why)
        return replace(model, active=active, stopped_why=why)


async def _receive(parts: AsyncIterator[Part], sha256: str) -> tuple[bytes, frozenset[bytes]]:
    """The file, as announced, and fingerprints of the members it was trained on.

    Until it is whole the file lies on disk, where nobody else finds it.
    """
    try:
        async with asyncio.timeout(UPLOAD_S_MAX):
            with tempfile.TemporaryFile() as file:
                trained_on = await _spool(parts, sha256, file)
                file.seek(0)
                return file.read(), trained_on
    except TimeoutError as error:
        raise ServiceError(
            Kind.DEADLINE,
            "UPLOAD_TOO_SLOW",
            f"nothing came for {IDLE_S_MAX:g} s, or not all of it in {UPLOAD_S_MAX:g} s; send the file again",
        ) from error
    except OSError as error:
        raise ServiceError(
            Kind.UNAVAILABLE, "NO_ROOM_FOR_UPLOAD", "the upload cannot be kept; make room in decision's TMPDIR"
        ) from error


async def _spool(parts: AsyncIterator[Part], sha256: str, file: BinaryIO) -> frozenset[bytes]:
    trained_on: set[bytes] = set()
    size, digest = 0, hashlib.sha256()
    while (part := await asyncio.wait_for(anext(parts, None), IDLE_S_MAX)) is not None:
        if not isinstance(part, bytes):
            trained_on.update(map(fingerprint, part))
            if len(trained_on) > TRAINING_MEMBERS_MAX:
                raise invalid("training_members", f"are more than {TRAINING_MEMBERS_MAX:,}; train on fewer decisions")
            continue
        size += len(part)
        if size > MODEL_BYTES_MAX:
            raise invalid("chunk", f"the file has more than {MODEL_BYTES_MAX:,} bytes; train a smaller model")
        digest.update(part)
        file.write(part)
    if not size:
        raise invalid("chunk", "is missing; send the ONNX file in chunks after the header")
    if digest.hexdigest() != sha256:
        raise invalid("header.sha256", "is not the SHA-256 of the file that was sent; send the file again")
    return frozenset(trained_on)


def _check_columns(model: NewModel, site: CompiledSite) -> None:
    """The model must read the site's columns, in their order."""
    feature_set = site.layout.feature_set
    if model.feature_set_version != feature_set.version:
        raise invalid(
            "header.feature_set_version",
            f"the site decides with feature set {feature_set.version}; train the model on that one",
        )
    expected = tuple(column.name for column in feature_set.columns)
    if model.columns == expected:
        return
    if len(model.columns) != len(expected):
        problem = f"names {len(model.columns)} columns, the feature set has {len(expected)}"
    else:
        first = next(k for k, name in enumerate(expected) if model.columns[k] != name)
        problem = f"column {first} must be {expected[first]}"
    raise invalid("header.columns", f"{problem}; send the feature set's columns in order")


def _site_of(refresher: Refresher) -> CompiledSite:
    site = refresher.serving().compiled
    if site is None:
        raise ServiceError(Kind.FAILED_PRECONDITION, "SITE_NOT_APPLIED", "no site was applied yet; apply one first")
    return site
