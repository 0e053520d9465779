"""Sites, items and models as they are kept, and which of them decide now."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.decision.domain.plan import CompiledSite
from services.decision.domain.site import Item

# Thousands of trees fit; what is larger is not a ranker that answers in milliseconds.
MODEL_BYTES_MAX = 32 * 2**20


@dataclass(frozen=True, slots=True)
class DeclaredSite:
    """A site as it was declared, checked and compiled, and the bytes it is kept in."""

    compiled: CompiledSite
    site: bytes
    feature_set: bytes


@dataclass(frozen=True, slots=True)
class SentSite:
    """A site as it was sent, and the feature set that it names.

    Args:
        bound_to: gives the site bound to this feature set; None: to the one that was sent, which may hide whose data a
            column reads. Raises ServiceError INVALID, with a problem for each mistake.
    """

    feature_set_version: str
    bound_to: Callable[[bytes | None], DeclaredSite]


@dataclass(frozen=True, slots=True)
class DeclaredItem:
    """An item and the bytes it is kept in."""

    item: Item
    data: bytes


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model with its bytes.

    Args:
        sha256: of the bytes, lower-case hex.
        columns: names of its input columns, in order; empty where only their number is kept.
        metrics: how it was trained; numbers only.
        trained_on: fingerprints of the members whose decisions it was trained on (domain.training_members).
        signature: Ed25519 by the site's model key over `signed_text` of its version; empty: none.
        registered_unsigned: it was kept before models had to be signed.
        golden: float32 scores of the golden rows as the trainer computed them; empty: not known.
    """

    name: str
    sha256: str
    feature_set_version: str
    columns_count: int
    onnx: bytes = field(repr=False)
    columns: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    trained_on: frozenset[bytes] = field(default=frozenset(), repr=False)
    signature: bytes = field(default=b"", repr=False)
    registered_unsigned: bool = False
    golden: bytes = field(default=b"", repr=False)

    @property
    def version(self) -> str:
        """name@sha256."""
        return f"{self.name}@{self.sha256}"

    def require_whole(self) -> None:
        """Returns when the bytes are those that the hash names.

        Raises:
            ServiceError: INVALID (MODEL_REFUSED).
        """
        if hashlib.sha256(self.onnx).hexdigest() != self.sha256:
            raise refused("does not have the SHA-256 that it was announced with; send the file again")


def signed_text(version: str) -> bytes:
    """What the signature of a model is over.

    Args:
        version: name@sha256.
    """
    return f"comity.model/1|{version}".encode()


def refused(problem: str) -> ServiceError:
    """The refusal of a model: what is wrong with it and how to mend it, in words of ours alone."""
    return ServiceError(Kind.INVALID, "MODEL_REFUSED", f"model: {problem}", problems=(FieldProblem("model", problem),))


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model, without its bytes.

    Args:
        active: it ranks wherever a policy names it; the store knows only that it is the one chosen for its name.
        stopped_fitting: it is the one chosen for its name, and reads another feature set than the site's.
        stopped_why: why it does not decide though it was chosen once; empty: nothing is wrong with it.
        erased_subjects_count: of the people it was trained on, how many were erased since.
        retrain_since: when the first of them was; None: none was.
        activated_at: when it was last let decide; None: never.
    """

    name: str
    sha256: str
    feature_set_version: str
    registered_at: datetime
    active: bool
    metrics: Mapping[str, float]
    erased_subjects_count: int = 0
    retrain_since: datetime | None = None
    activated_at: datetime | None = None
    stopped_fitting: bool = False
    stopped_why: str = ""

    @property
    def version(self) -> str:
        """name@sha256."""
        return f"{self.name}@{self.sha256}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Versions of everything a replica decides with, as the database has them.

    Args:
        active_models: name and SHA-256 of each.
        stopped_models: versions of those that were taken off.
        models_at: when a model was last activated or taken off.
    """

    site_version: str
    catalog_version: int
    active_models: frozenset[tuple[str, str]]
    stopped_models: frozenset[str] = frozenset()
    models_at: datetime | None = None
