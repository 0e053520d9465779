"""Models on their way: received whole, checked, kept, activated."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeAlias

from services.chassis.errors import Kind, ServiceError, invalid
from services.decision.domain.plan import CompiledSite
from services.decision.domain.release import MODEL_BYTES_MAX, Model, NewModel
from services.decision.domain.training_members import fingerprint
from services.decision.handlers.ports import ModelLoader, ModelStore
from services.decision.handlers.refresh import Refresher

# A set of them takes some hundred megabytes while a model is registered.
TRAINING_MEMBERS_MAX = 2_000_000

# A chunk of the file, or members it was trained on.
Part: TypeAlias = bytes | tuple[str, ...]


class RegisterModel:
    """Takes a model in. A model that does not fit is refused whole, and nothing of it is kept."""

    def __init__(self, models: ModelStore, loader: ModelLoader, refresher: Refresher) -> None:
        self._models = models
        self._loader = loader
        self._refresher = refresher

    async def __call__(self, announced: NewModel, parts: AsyncIterator[Part]) -> tuple[NewModel, bool]:
        """The model, and whether it had been registered before.

        Args:
            announced: the model without its bytes.
            parts: chunks of the file, in order, and members that it was trained on, anywhere between them.

        Raises:
            ServiceError: INVALID, naming the field and the remedy.
        """
        site = _site_of(self._refresher)
        _check_columns(announced, site)
        onnx, trained_on = await _receive(parts, announced.sha256)
        model = NewModel(
            name=announced.name,
            sha256=announced.sha256,
            feature_set_version=announced.feature_set_version,
            columns_count=len(announced.columns),
            onnx=onnx,
            columns=announced.columns,
            metrics=announced.metrics,
            trained_on=trained_on,
        )
        # Parsing and trying it takes a while, and the calls that run must not wait for it.
        await asyncio.to_thread(self._loader.load, model)
        return model, not await self._models.register(model)


class ActivateModel:
    """Lets a registered model decide."""

    def __init__(self, models: ModelStore, refresher: Refresher) -> None:
        self._models = models
        self._refresher = refresher

    async def __call__(self, name: str, sha256: str) -> str:
        """The model's version; when this returns this replica decides with it, the others follow within a second.

        Raises:
            ServiceError: NOT_FOUND (MODEL_UNKNOWN); FAILED_PRECONDITION.
        """
        await self._refresher.refresh()
        site = _site_of(self._refresher)
        await self._models.activate(name, sha256, site.layout.feature_set.version)
        await self._refresher.refresh()
        return f"{name}@{sha256}"


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

    def __init__(self, models: ModelStore, refresher: Refresher) -> None:
        self._models = models
        self._refresher = refresher

    async def __call__(self) -> list[Model]:
        """Every registered model, oldest first; active is what ranks now."""
        models, site = await self._models.all(), self._refresher.serving().compiled
        return [
            replace(model, active=False, stopped_fitting=True)
            if model.active and site is not None and model.feature_set_version != site.layout.feature_set.version
            else model
            for model in models
        ]


async def _receive(parts: AsyncIterator[Part], sha256: str) -> tuple[bytes, frozenset[bytes]]:
    """The file, as announced, and fingerprints of the members it was trained on."""
    chunks: list[bytes] = []
    trained_on: set[bytes] = set()
    size, digest = 0, hashlib.sha256()
    async for part in parts:
        if not isinstance(part, bytes):
            trained_on.update(map(fingerprint, part))
            if len(trained_on) > TRAINING_MEMBERS_MAX:
                raise invalid("training_members", f"are more than {TRAINING_MEMBERS_MAX:,}; train on fewer decisions")
            continue
        size += len(part)
        if size > MODEL_BYTES_MAX:
            raise invalid("chunk", f"the file has more than {MODEL_BYTES_MAX:,} bytes; train a smaller model")
        digest.update(part)
        chunks.append(part)
    if not size:
        raise invalid("chunk", "is missing; send the ONNX file in chunks after the header")
    if digest.hexdigest() != sha256:
        raise invalid("header.sha256", "is not the SHA-256 of the file that was sent; send the file again")
    return b"".join(chunks), frozenset(trained_on)


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
