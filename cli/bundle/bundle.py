"""A site bundle in memory: what is declared, and where each of it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import never_list_pb2 as never_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import feature_set_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from google.protobuf.message import Message

from cli.bundle.document import Place, place_of
from cli.bundle.problem import Problem
from services.feedback.domain.schemas import EXPOSURE

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Declared(Generic[M]):
    """One declared thing and where it stands.

    Args:
        message: the thing.
        file: path inside the bundle.
        path: of the thing inside the file, e.g. `[2]`.
        places: field path → place, of the whole file.
    """

    message: M
    file: str
    path: str
    places: Mapping[str, Place] = field(default_factory=dict)

    def problem(self, path: str, problem: str, remedy: str) -> Problem:
        """A problem of the thing's field at *path* (`.slate_size`; empty: of the thing itself)."""
        full = self.path + path
        place = place_of(self.places, full)
        return Problem(self.file, place.line, place.column, full, problem, remedy)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything a site declares. The head is site.yaml: name, controller, holdout share, placeholders."""

    folder: Path
    head: Declared[site_pb.Site]
    purposes: tuple[Declared[consent_pb.Purpose], ...]
    events: tuple[Declared[feedback_pb.EventSchema], ...]
    features: tuple[Declared[features_pb.Feature], ...]
    placements: tuple[Declared[site_pb.Placement], ...]
    policies: tuple[Declared[site_pb.Policy], ...]
    items: tuple[Declared[site_pb.Item], ...]
    # Both optional: without notices none is asked for, without jurisdictions every place is opt-in.
    notices: tuple[Declared[consent_pb.Notice], ...]
    jurisdictions: tuple[Declared[consent_pb.Jurisdiction], ...]
    # Beyond the built-in list; empty when there is no never.yaml.
    never: Declared[never_pb.NeverList]
    # False when neither items.yaml nor a feed was there: what refers to items cannot be checked offline.
    items_given: bool

    def site(self, *, feature_set_version: str = "", consent_policy_version: str = "") -> site_pb.Site:
        """The part that decides, as CatalogService takes it."""
        return site_pb.Site(
            name=self.head.message.name,
            holdout_share=self.head.message.holdout_share,
            placements=[placement.message for placement in self.placements],
            policies=[policy.message for policy in self.policies],
            feature_set_version=feature_set_version,
            consent_policy_version=consent_policy_version,
            exposure_purposes=next((one.message.purposes for one in self.events if one.message.type == EXPOSURE), ()),
        )

    def identity(self, *, validate_only: bool = False) -> identity_pb.PublishPlaceholdersRequest:
        """The part about who is who, as IdentityService takes it."""
        return identity_pb.PublishPlaceholdersRequest(
            values=self.head.message.placeholders, validate_only=validate_only
        )

    def consent(self, *, validate_only: bool = False) -> consent_pb.PublishPurposesRequest:
        """The part about consent, as ConsentService takes it."""
        return consent_pb.PublishPurposesRequest(
            purposes=[purpose.message for purpose in self.purposes],
            notices=[notice.message for notice in self.notices],
            jurisdictions=[place.message for place in self.jurisdictions],
            controller=self.head.message.controller,
            validate_only=validate_only,
        )

    def with_policies(self, policies: Mapping[str, site_pb.Policy]) -> "Bundle":
        """The same bundle with the named policies in place of its own."""
        changed = tuple(replace(own, message=policies.get(own.message.id, own.message)) for own in self.policies)
        return replace(self, policies=changed)
