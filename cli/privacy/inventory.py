"""The record of processing: what a site declares it collects and why, beside where the services keep it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from comity.consent.v1 import privacy_service_pb2 as pb

if TYPE_CHECKING:
    from cli.bundle import Bundle

# Which service keeps what the bundle declares.
KEEPERS: Mapping[str, str] = {"event": "feedback", "feature": "features", "placement": "decision"}


@dataclass(frozen=True, slots=True)
class Declared:
    """One thing that the site declares to collect or compute.

    Args:
        retention_days: 0: nothing is said.
        stored_in: store and name of each kind of record that the service keeps, as it describes itself.
    """

    kind: str
    name: str
    what: str
    purposes: tuple[str, ...]
    why: str
    owner: str
    retention_days: int
    stored_in: tuple[str, ...] = ()
    sealed: bool = False
    read_by: tuple[str, ...] = ()


def declared_of(bundle: "Bundle", services: Iterable[pb.ServiceHoldings]) -> list[Declared]:
    """The declared part, joined with where it is kept."""
    kept = {one.service: list(one.holdings) for one in services}
    return [_joined(one, kept) for one in _declarations(bundle)]


def as_json(services: Iterable[pb.ServiceHoldings], declared: Iterable[Declared]) -> dict[str, Any]:
    """Both parts as one object."""
    stored = [
        {
            "service": one.service,
            "store": holding.store,
            "name": holding.name,
            "content": holding.content,
            "sealed": holding.sealed,
            "purposes": list(holding.purposes),
            "retention_days": holding.retention_days,
            "read_by": list(holding.read_by),
            "erasure": holding.erasure,
        }
        for one in services
        for holding in one.holdings
    ]
    return {"declared": [asdict(one) for one in declared], "stored": stored}


def _declarations(bundle: "Bundle") -> Iterable[Declared]:
    for event in (one.message for one in bundle.events):
        yield Declared(
            kind="event",
            name=event.type,
            what=event.description,
            purposes=tuple(event.purposes),
            why=event.reason,
            owner=event.owner,
            retention_days=event.retention_days,
        )
    for feature in (one.message for one in bundle.features):
        # Without purposes it says nothing about a person.
        if feature.purposes:
            yield Declared(
                kind="feature",
                name=feature.name,
                what=feature.description,
                purposes=tuple(feature.purposes),
                why=feature.reason,
                owner=feature.owner,
                retention_days=feature.retention_days,
            )
    owners = {one.message.id: one.message for one in bundle.purposes}
    for placement in (one.message for one in bundle.placements):
        purposes = [owners[name] for name in placement.purposes if name in owners]
        yield Declared(
            kind="placement",
            name=placement.id,
            what=f"decisions, with what they were computed from: {placement.description}",
            purposes=tuple(placement.purposes),
            why="; ".join(one.description for one in purposes),
            owner=", ".join(sorted({one.owner for one in purposes})),
            retention_days=min((one.retention_days for one in purposes), default=0),
        )


def _joined(declared: Declared, kept: Mapping[str, list[Any]]) -> Declared:
    holdings = kept.get(KEEPERS[declared.kind], [])
    return replace(
        declared,
        stored_in=tuple(f"{one.store} {one.name}" for one in holdings),
        sealed=any(one.sealed for one in holdings),
        read_by=tuple(sorted({reader for one in holdings for reader in one.read_by})),
    )
