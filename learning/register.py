"""Hands a model to the platform: registered whole or not at all, then made the one that decides."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1.decision_service_pb2_grpc import ReleaseServiceStub

from learning.export import Exported
from services.chassis.rpc_client import call, call_again, tried_again
from services.chassis.signing import signing_key
from services.decision.domain.release import signed_text

# Half of what one message may carry.
CHUNK_BYTES = 64 * 1024
MEMBERS_MAX = 4096
# Decision tries the model in a process of its own before it takes it in.
REGISTER_TIMEOUT_S = 120.0
ACTIVATE_TIMEOUT_S = 30.0


# The signature of a model's version, name@sha256, by the site's model key.
Sign = Callable[[str], bytes]


def signer(secret: bytes) -> Sign:
    """Signs with the site's model key, which is made of the secret."""
    key = signing_key("models", secret)
    return lambda version: key.sign(signed_text(version))


async def register(
    stub: ReleaseServiceStub,
    exported: Exported,
    *,
    name: str,
    feature_set: str,
    columns: tuple[str, ...],
    metrics: Mapping[str, float],
    sign: Sign,
    member_ids: Sequence[str] = (),
) -> str:
    """The version that the model was registered as; registering the same one again gives the same version.

    Args:
        member_ids: pseudonyms of those whose decisions it was trained on.

    Raises:
        ServiceError: INVALID when the model does not fit the site's features, is not signed by the site's key or must
            not be loaded; nothing of it is kept then.
    """
    header = pb.ModelHeader(
        name=name,
        sha256=exported.sha256,
        feature_set_version=feature_set,
        columns=columns,
        metrics=dict(metrics),
        signature=sign(f"{name}@{exported.sha256}"),
        golden_scores=exported.golden_scores,
    )

    async def send() -> pb.RegisterModelResponse:
        return await call(stub.RegisterModel, _parts(header, exported.model, member_ids), REGISTER_TIMEOUT_S)

    return (await tried_again("decision.RegisterModel", send)).model_version


def _parts(header: pb.ModelHeader, model: bytes, member_ids: Sequence[str]) -> Iterator[pb.RegisterModelRequest]:
    yield pb.RegisterModelRequest(header=header)
    for start in range(0, len(member_ids), MEMBERS_MAX):
        members = pb.TrainingMembers(member_ids=member_ids[start : start + MEMBERS_MAX])
        yield pb.RegisterModelRequest(training_members=members)
    for start in range(0, len(model), CHUNK_BYTES):
        yield pb.RegisterModelRequest(chunk=model[start : start + CHUNK_BYTES])


async def activate(stub: ReleaseServiceStub, *, name: str, sha256: str) -> str:
    """The version that decides from now on.

    Raises:
        ServiceError: NOT_FOUND when it was never registered.
    """
    request = pb.ActivateModelRequest(name=name, sha256=sha256)
    response = await call_again(stub.ActivateModel, request, ACTIVATE_TIMEOUT_S)
    return response.model_version
