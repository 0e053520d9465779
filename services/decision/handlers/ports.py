"""What the use cases need from the outside; store, clients and ranker give it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from services.chassis.events import LogPosition
from services.decision.domain.attempts import Logged
from services.decision.domain.catalog import ItemColumns
from services.decision.domain.plan import CompiledSite
from services.decision.domain.record import DecisionRecord
from services.decision.domain.release import DeclaredItem, DeclaredSite, Model, NewModel, Standing
from services.decision.domain.request import Consent, Identity, Member, Person, Profile, Signals
from services.decision.domain.serving import Ranker
from services.decision.domain.site import Item


class IdentityReader(Protocol):
    """Who someone is."""

    async def resolve(self, identities: tuple[Identity, ...]) -> Person:
        """The person.

        Raises:
            ServiceError: INVALID when the identities cannot be one person's; else an outage.
        """
        ...

    async def describe(self, subject_id: str) -> Person:
        """The person that this pseudonym belongs to; one that was never linked is a person of its own.

        Raises:
            ServiceError: an outage.
        """
        ...


class ConsentReader(Protocol):
    """What someone allows."""

    async def evaluate(
        self, members: tuple[Member, ...], purposes: tuple[str, ...], signals: Signals | None = None
    ) -> Consent:
        """The authority's answer, read after this call began; *signals* came with the request.

        Raises:
            ServiceError: an outage.
        """
        ...


class FeatureReader(Protocol):
    """What is known of someone."""

    async def read(self, feature_set_version: str, person: Person, as_of: datetime) -> Profile:
        """The person's vector at that moment.

        Raises:
            ServiceError: an outage, or FAILED_PRECONDITION for a feature set that features does not serve.
        """
        ...


class ColumnsReader(Protocol):
    """Item rows as features publishes them."""

    async def newest(self, feature_set_version: str, item_width: int, held: ItemColumns | None) -> ItemColumns | None:
        """The newest snapshot; None when it is still the one that is held.

        Raises:
            ServiceError: an outage.
        """
        ...


class FeatureSetReader(Protocol):
    """Feature sets as features published them."""

    async def published(self, version: str) -> bytes | None:
        """The whole set; None when none of this version was published.

        Raises:
            ServiceError: an outage.
        """
        ...


class DecisionLog(Protocol):
    """The decisions that were made."""

    def holds_key(self, member_id: str) -> bool:
        """Whether a record about this member can be sealed without asking for its key."""
        ...

    async def fetch_key(self, member_id: str) -> None:
        """Have the member's key at hand.

        Raises:
            ServiceError: NOT_FOUND (SUBJECT_ERASED); else an outage.
        """
        ...

    async def add(self, record: DecisionRecord, attempt_id: str = "") -> LogPosition:
        """Record a decision durably: version 1, named by the attempt that makes it, where one may withdraw it.

        Raises:
            ServiceError: CONFLICT when the decision is there already; else a refusal or an outage, after which it may
                be there, or come.
        """
        ...

    async def amend(self, logged: Logged, record: DecisionRecord) -> LogPosition:
        """Record what the decision is from here on, behind what was found.

        Raises:
            ServiceError: CONFLICT when something was recorded since; INTERNAL (MEMBER_CHANGED) when it is about
                another member than what it follows; else as of add.
        """
        ...

    async def find(self, decision_id: str) -> Logged | None:
        """The decision as it stands; None when there is none.

        Raises:
            ServiceError: NOT_FOUND (SUBJECT_ERASED); else an outage.
        """
        ...


class SiteStore(Protocol):
    """Sites that were applied, kept for ever."""

    async def load(self, site_version: str) -> CompiledSite | None:
        """The site at this version; None when it never was applied, or cannot be read."""
        ...

    async def before(self, site_version: str) -> list[str]:
        """Versions of the sites that decided before this one, the newest first, some of them."""
        ...

    async def data(self, site_version: str) -> bytes:
        """The site at this version as it was declared; empty when it never was applied."""
        ...

    async def apply(self, declared: DeclaredSite) -> bool:
        """Let this site decide; False when it does already."""
        ...


class CatalogStore(Protocol):
    """Items at every version they have had."""

    @property
    def has_unread(self) -> bool:
        """Whether there are items that could not be read."""
        ...

    async def changed_since(self, catalog_version: int) -> tuple[int, list[Item]]:
        """The newest version, and every item that entered or changed after the given one, or could not be read before.

        The oldest first.
        """
        ...

    async def at(self, item_ids: Sequence[str], catalog_version: int) -> list[Item | None]:
        """Each item as it was at this version; None for one that was not in the catalog."""
        ...

    async def page(self, *, after: str = "") -> list[DeclaredItem]:
        """Items as they stand, by id from the one after the given on, retired ones too; empty at the end."""
        ...

    async def upsert(self, items: Sequence[DeclaredItem]) -> tuple[int, LogPosition]:
        """Enter or change all of the items, or none; the catalog's version and its log's position after it."""
        ...


class ModelStore(Protocol):
    """Models that were registered, kept for ever."""

    async def register(self, model: NewModel) -> bool:
        """Keep the model and whom it was trained on; False when it is kept already, with more people if need be.

        Of those who were erased it keeps none, and marks the model instead.
        """
        ...

    async def activate(self, name: str, sha256: str, feature_set_version: str) -> None:
        """Let this model decide wherever a policy names it.

        Raises:
            ServiceError: NOT_FOUND (MODEL_UNKNOWN); FAILED_PRECONDITION (MODEL_OF_OTHER_FEATURES).
        """
        ...

    async def all(self) -> list[Model]:
        """Every registered model, oldest first."""
        ...

    async def data(self, name: str, sha256: str) -> NewModel | None:
        """The model with its bytes; None when it was never registered."""
        ...

    async def stop(self, name: str, sha256: str, why: str) -> None:
        """Take this model off: it decides nowhere until somebody activates it again."""
        ...

    async def verdict(self, model: NewModel, checker: str) -> str | None:
        """What this checker found wrong with the model's file; empty: nothing; None: it was not tried."""
        ...

    async def remember_verdict(self, model: NewModel, checker: str, problem: str) -> None:
        """Keep what this checker found."""
        ...


class ModelLoader(Protocol):
    """Makes rankers of models. Both methods take a while, so they are called in a thread."""

    @property
    def checker(self) -> str:
        """Names what try_out lets through."""
        ...

    def try_out(self, model: NewModel) -> str:
        """What is wrong with the model's file, as a sentence's end; empty: nothing. Nothing of it runs in this process.

        Raises:
            ServiceError: UNAVAILABLE (MODEL_NOT_TRIED).
        """
        ...

    def load(self, model: NewModel) -> Ranker:
        """The ranker, warmed; only of a model that was tried.

        Raises:
            ServiceError: INVALID (MODEL_REFUSED), naming what is wrong with it.
        """
        ...


class StandingReader(Protocol):
    """What stands in the database now."""

    async def standing(self) -> Standing:
        """One cheap read: it is asked several times a second."""
        ...
