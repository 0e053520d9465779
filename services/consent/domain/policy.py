"""The policy of a site: its purposes, notices and jurisdictions at one time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.consent.domain.notices import Notice
from services.consent.domain.purposes import Purpose
from services.consent.domain.regimes import Jurisdiction


@dataclass(frozen=True, slots=True)
class Policy:
    """All that the site declares about consent at one time, each by its id.

    Args:
        version: the hash of its content, empty before the first.
        controller: who answers to people for what is held about them; empty: not declared yet.
        unread_purposes: whose terms cannot be read now. They allow nothing, and are still checked against.
        unread_notices: versions of notices that cannot be read now.
    """

    version: str = ""
    purposes: Mapping[str, Purpose] = field(default_factory=lambda: MappingProxyType({}))
    notices: Mapping[str, Notice] = field(default_factory=lambda: MappingProxyType({}))
    jurisdictions: Mapping[str, Jurisdiction] = field(default_factory=lambda: MappingProxyType({}))
    controller: str = ""
    unread_purposes: Mapping[str, Purpose] = field(default_factory=lambda: MappingProxyType({}))
    unread_notices: frozenset[str] = frozenset()

    @property
    def names(self) -> str:
        """The purposes, as an error text lists them."""
        return ", ".join(sorted(self.purposes)) or "none (apply a site bundle first)"
