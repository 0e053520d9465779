"""Stubs of the five services: at the addresses that were given, or those of the stack that runs here."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import grpc
import typer
from comity.common.v1 import operations_pb2_grpc as operations_grpc
from comity.consent.v1 import consent_service_pb2_grpc as consent_grpc
from comity.consent.v1 import privacy_service_pb2_grpc as privacy_grpc
from comity.decision.v1 import decision_service_pb2_grpc as decision_grpc
from comity.features.v1 import features_service_pb2_grpc as features_grpc
from comity.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from comity.identity.v1 import identity_service_pb2_grpc as identity_grpc

from cli.options import MODEL_KEY_VARIABLE
from cli.stack import SERVICES, DataDir, addresses
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.rpc_client import connect, warm
from services.chassis.settings import read_secret

if TYPE_CHECKING:
    from learning.register import Sign

Address: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--address",
        metavar="SERVICE=HOST:PORT",
        help="Where a service answers, instead of the stack of --data-dir; give it once for each service that the "
        "command calls. COMITY_<SERVICE>_ADDRESS does the same.",
    ),
]
# Typer wants a default of its own for options that repeat.
NO_ADDRESSES: list[str] = []


def resolve_addresses(data_dir: Path, given: Sequence[str] = ()) -> dict[str, str]:
    """host:port of each service: as given, else from the environment; where neither names one, of the stack here.

    Never of both: a command that reached a service here and another one elsewhere would mix two sites.

    Raises:
        ServiceError: INVALID for an address that is none; FAILED_PRECONDITION when nothing was given and nothing runs.
    """
    found = {name: os.environ[key] for name in SERVICES if (key := f"COMITY_{name.upper()}_ADDRESS") in os.environ}
    for text in given:
        name, _, address = text.partition("=")
        if name not in SERVICES or ":" not in address:
            raise invalid("--address", f"is not SERVICE=HOST:PORT; services are {', '.join(SERVICES)}")
        found[name] = address
    if found:
        return found
    return dict(addresses(data_dir))


def model_key_of(data_dir: Path, given: Sequence[str] = ()) -> Path | None:
    """The file of the key that models are signed with: the named one, else that of the stack here; None: not at hand.

    Args:
        given: addresses of services elsewhere, whose key is not the one of the stack here.
    """
    if named := os.environ.get(MODEL_KEY_VARIABLE):
        return Path(named)
    elsewhere = given or any(f"COMITY_{name.upper()}_ADDRESS" in os.environ for name in SERVICES)
    return None if elsewhere else DataDir(data_dir).model_key


def model_signer(key_file: Path | None) -> "Sign":
    """Signs models with the key in the file.

    Raises:
        ServiceError: FAILED_PRECONDITION (NO_MODEL_KEY).
    """
    from learning.register import signer

    return signer(model_secret(key_file))


def model_secret(key_file: Path | None) -> bytes:
    """What the key that models are signed with is made of.

    Raises:
        ServiceError: FAILED_PRECONDITION (NO_MODEL_KEY).
    """
    try:
        if key_file is None:
            raise ValueError("it is not that of a stack here")
        return read_secret(key_file)
    except ValueError as error:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "NO_MODEL_KEY",
            f"the key that models are signed with is not at hand ({error}); name its file in {MODEL_KEY_VARIABLE}",
        ) from error


class Services:
    """Stubs of the services, connected when first used. Use it as `async with`.

    Args:
        model_key: file of the key that models are signed with.
    """

    def __init__(self, where: Mapping[str, str], *, model_key: Path | None = None) -> None:
        self.addresses = dict(where)
        self._model_key = model_key
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> "Services":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    # Stubs are generated for grpc.aio and for grpc at once; what they type as depends on the channel.

    @property
    def identity(self) -> Any:
        """IdentityService."""
        return identity_grpc.IdentityServiceStub(self._channel("identity"))

    @property
    def consent(self) -> Any:
        """ConsentService."""
        return consent_grpc.ConsentServiceStub(self._channel("consent"))

    @property
    def privacy(self) -> Any:
        """PrivacyService."""
        return privacy_grpc.PrivacyServiceStub(self._channel("consent"))

    @property
    def features(self) -> Any:
        """FeatureService."""
        return features_grpc.FeatureServiceStub(self._channel("features"))

    @property
    def feedback(self) -> Any:
        """FeedbackService."""
        return feedback_grpc.FeedbackServiceStub(self._channel("feedback"))

    @property
    def decision(self) -> Any:
        """DecisionService."""
        return decision_grpc.DecisionServiceStub(self._channel("decision"))

    @property
    def catalog(self) -> Any:
        """CatalogService."""
        return decision_grpc.CatalogServiceStub(self._channel("decision"))

    @property
    def release(self) -> Any:
        """ReleaseService."""
        return decision_grpc.ReleaseServiceStub(self._channel("decision"))

    def sign(self, version: str) -> bytes:
        """The signature of a model's version, name@sha256, by the site's model key.

        Raises:
            ServiceError: FAILED_PRECONDITION (NO_MODEL_KEY) when it is not at hand.
        """
        return model_signer(self._model_key)(version)

    def operations(self, service: str) -> Any:
        """OperationsService of a service."""
        return operations_grpc.OperationsServiceStub(self._channel(service))

    async def warm(self, service: str) -> None:
        """Connect now: a first call on a cold channel can take longer than a Decide may."""
        await warm(self._channel(service))

    def _channel(self, service: str) -> grpc.aio.Channel:
        if service not in self._channels:
            if service not in self.addresses:
                raise invalid("--address", f"is missing for {service}; add --address {service}=HOST:PORT")
            self._channels[service] = connect(self.addresses[service])
        return self._channels[service]
