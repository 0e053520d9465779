"""What identity does when it is asked, against ports."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from services.chassis.clock import Clock
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.ids import content_hash, uuid7
from services.chassis.ports import Access, AccessLog, Operation
from services.chassis.tracing import COMITY_BATCH_SIZE, span
from services.chassis.uncancelled import uncancelled
from services.identity.domain.identities import (
    NAMESPACES,
    Contradiction,
    Identity,
    Level,
    Pseudonym,
    next_generation,
    pseudonyms,
)
from services.identity.domain.keys import DataKey
from services.identity.domain.linking import LinkCommand, Linked, UnlinkCommand
from services.identity.domain.permission import (
    IDENTITY_LINKING,
    Denial,
    Side,
    Signals,
    Word,
    denial,
    required_purposes,
    sides,
)
from services.identity.domain.presented import NOBODY, Placeholders, presented
from services.identity.domain.resolution import ERASED, Found, Query, Resolved, Sought, answer, seek, seek_strongest
from services.identity.domain.room import crowd
from services.identity.domain.subjects import MEMBERS_MAX, LinkNote, People
from services.identity.metrics import DATA_KEYS_MINTED, LINKS, PLACEHOLDERS

# A person who was erased and came back is looked for in this many later generations at once.
GENERATIONS_TOGETHER = 8
RESOLVE_METHOD = "comity.identity.v1.IdentityService/Resolve"
KEYS_METHOD = "comity.identity.v1.KeyService/GetDataKeys"
DESCRIBE_METHOD = "comity.identity.v1.IdentityService/DescribeSubject"
# Somebody may be linked from elsewhere while consent is asked: each try asks again, about the people of that moment.
# Of those that race one gets through each time, so this is how many logins of one person may come at once.
ASKED_MAX = 16
PEOPLE_MOVED = "PEOPLE_MOVED"


class SubjectReader(Protocol):
    """Who the members are now."""

    async def subjects(self, member_ids: Sequence[str]) -> Found:
        """The subjects of these members and who of them was erased, in one round trip."""
        ...

    async def links(self, member_ids: Sequence[str]) -> list[LinkNote]:
        """The links that name any of these members, the oldest first."""
        ...


class LinkStore(Protocol):
    """Links and what follows from them, changed together with the facts that say so."""

    async def made(self, command: LinkCommand) -> Linked | None:
        """The link, if the command was applied before or the same statement stands already.

        Raises:
            ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED), UNAVAILABLE.
        """
        ...

    async def people(self, member_ids: Sequence[str]) -> People:
        """The subjects of these members; those that no link names are absent."""
        ...

    async def link(self, command: LinkCommand, asked: frozenset[Side], gave_way: frozenset[str]) -> Linked:
        """Make the link, or find that it stands already.

        Args:
            asked: whom it may join: those who were asked.
            gave_way: members that leave the person to make room.

        Raises:
            ServiceError: CONFLICT (PEOPLE_MOVED) when it would join others than those; FAILED_PRECONDITION
                (SUBJECT_FULL, IDENTITY_SHARED_TOO_OFTEN), ALREADY_EXISTS (REQUEST_ID_REUSED), CONFLICT, UNAVAILABLE.
        """
        ...

    async def unlink(self, command: UnlinkCommand) -> Sequence[str]:
        """Take the link back; the members that it named, strongest first.

        Raises:
            ServiceError: NOT_FOUND (LINK_UNKNOWN), EXHAUSTED (LINKS_TANGLED), ALREADY_EXISTS (REQUEST_ID_REUSED),
                CONFLICT, UNAVAILABLE.
        """
        ...


class ConsentReader(Protocol):
    """What people have said; the authority read."""

    async def words(self, asked: Sequence[Side], purposes: Sequence[str], signals: Signals) -> list[Mapping[str, Word]]:
        """What stands for each person and purpose, by the ledger and the signals; read after this call began.

        Raises:
            ServiceError: UNAVAILABLE (CONSENT_UNAVAILABLE).
        """
        ...

    async def refusing(self, member_ids: Sequence[str]) -> frozenset[str]:
        """Those of these members whose own ledger holds a refusal or an objection that stands, to whatever purpose.

        Raises:
            ServiceError: UNAVAILABLE (CONSENT_UNAVAILABLE).
        """
        ...


class KeyStore(Protocol):
    """Data keys, wrapped where they are kept."""

    async def keys(self, member_ids: Sequence[str]) -> Mapping[str, DataKey]:
        """The keys there are, and those destroyed; the others are absent."""
        ...

    async def mint(self, member_ids: Sequence[str]) -> Mapping[str, DataKey]:
        """As keys(), after making those that never were; of two that mint at once both get the same key."""
        ...


class PlaceholderBook(Protocol):
    """The values that name nobody: the built-in ones, and those that the site adds."""

    @property
    def known(self) -> Placeholders:
        """As they were published a moment ago; no round trip."""
        ...

    async def publish(self, values: Sequence[str]) -> bool:
        """Put these in the place of those that the site added; whether that changed them."""
        ...


class IdentityHandlers:
    """Resolve, Link, Unlink, DescribeSubject and PublishPlaceholders.

    Args:
        pepper: key of every pseudonym; with another one everybody is somebody else.
        holdout_salt: decides which bucket a person is in; with another one the holdout is drawn anew.
    """

    def __init__(
        self,
        subjects: SubjectReader,
        links: LinkStore,
        consent: ConsentReader,
        accesses: AccessLog,
        placeholders: PlaceholderBook,
        clock: Clock,
        *,
        pepper: bytes,
        holdout_salt: str,
    ) -> None:
        self._subjects = subjects
        self._links = links
        self._consent = consent
        self._accesses = accesses
        self._placeholders = placeholders
        self._clock = clock
        self._pepper = pepper
        self._salt = holdout_salt

    async def resolve(self, queries: Sequence[Query], access: Access | None = None) -> list[Resolved | Contradiction]:
        """Who each query means, in order; one that contradicts itself costs the others nothing.

        Args:
            access: of a person who looks them up, recorded before they are given out; None of a service, which writes
                nothing.
        """
        with span("identity.resolve", {COMITY_BATCH_SIZE: len(queries)}):
            answers = await self._answers([self._sought(query) for query in queries])
            if access is not None:
                told = {one.subject_id for one in answers if isinstance(one, Resolved)}
                for subject_id in sorted(told):
                    await self._accesses.accessed(subject_id, access, RESOLVE_METHOD)
            return answers

    async def link(
        self, request_id: str, identities: Sequence[Identity], signals: Signals = None
    ) -> tuple[Linked, Resolved]:
        """State that the identities belong to one person, if those whom it joins allow it; the link, and who that is.

        Args:
            signals: None where none came. No part of the command: a retry brings those of its own moment.

        Raises:
            ServiceError: INVALID when they cannot be one person's; FAILED_PRECONDITION (IDENTITY_LINKING_NOT_ALLOWED);
                UNAVAILABLE (CONSENT_UNAVAILABLE); see LinkStore.link. Whatever is raised, nothing was linked, but for
                an unknown outcome, and a link that was made and that says nothing about anybody any more
                (FAILED_PRECONDITION, NAMESPACE_NOT_ALLOWED).
        """
        usable = self._usable(identities)
        first = usable if isinstance(usable, Contradiction) else pseudonyms(self._pepper, usable)
        if isinstance(first, Contradiction):
            raise _refused("identities", first)
        with span("identity.link"):
            named = await self._living(first)
            command = LinkCommand(request_id, uuid7(self._clock.now()), named, first)
            linked = await self._links.made(command) or await self._link(command, signals)
            LINKS.labels("merged" if linked.merged else "kept").inc()
            (resolved,) = await self._answers([seek_strongest(first)])
            if isinstance(resolved, Contradiction):
                # A retry of a link of gated identities alone, which was taken back: they name nobody again.
                raise ServiceError(Kind.FAILED_PRECONDITION, resolved.reason, f"identities: {resolved.problem}")
            return linked, resolved

    async def unlink(self, request_id: str, link_id: str) -> list[Resolved]:
        """Take a link back; who the identities that it named are now, each person once.

        Raises:
            ServiceError: see LinkStore.unlink.
        """
        with span("identity.unlink"):
            member_ids = await self._links.unlink(UnlinkCommand(request_id, link_id))
            LINKS.labels("taken_back").inc()
            answers = await self._answers([Sought(member_id, Level.UNSPECIFIED) for member_id in member_ids])
            # Who was erased since is nobody any more.
            return list({one.subject_id: one for one in answers if isinstance(one, Resolved)}.values())

    async def describe(self, query: Query, access: Access) -> tuple[Resolved, list[LinkNote]]:
        """Who a query means, and the links that say so; that it was read is recorded before it is given out.

        Raises:
            ServiceError: INVALID when the query contradicts itself, or names nobody by an identity of their own.
        """
        with span("identity.describe_subject"):
            (resolved,) = await self._answers([self._sought(query)])
            if resolved is ERASED:
                raise ServiceError(Kind.FAILED_PRECONDITION, ERASED.reason, f"subject: {ERASED.problem}")
            if isinstance(resolved, Contradiction):
                raise _refused("subject", resolved)
            if resolved.required_purposes:
                raise invalid("subject", "is recognized without their help only: present an identity of their own")
            links = await self._subjects.links([one.member_id for one in resolved.members])
            await self._accesses.accessed(resolved.subject_id, access, DESCRIBE_METHOD)
            return resolved, links

    async def publish_placeholders(self, values: Sequence[str], *, validate_only: bool) -> tuple[str, bool]:
        """The values that name nobody beside the built-in ones, from now on: their version, and whether it is new.

        Every replica goes by them within a second.
        """
        with span("identity.publish_placeholders"):
            added = sorted(set(values))
            version = content_hash("\0".join(added).encode())
            return version, False if validate_only else await self._placeholders.publish(added)

    def _sought(self, query: Query) -> Sought | Contradiction:
        usable = self._usable(query.identities)
        return usable if isinstance(usable, Contradiction) else seek(self._pepper, replace(query, identities=usable))

    def _usable(self, identities: Sequence[Identity]) -> tuple[Identity, ...] | Contradiction:
        """Those that name somebody; the others are counted."""
        usable = presented(identities, self._placeholders.known)
        if isinstance(usable, Contradiction) or len(usable) < len(identities):
            for one in identities:
                if one.namespace in NAMESPACES and self._placeholders.known.hold(one):
                    PLACEHOLDERS.labels(one.namespace).inc()
        return usable

    async def _link(self, command: LinkCommand, signals: Signals) -> Linked:
        for tries_left in reversed(range(ASKED_MAX)):
            people = await self._links.people([one.member_id for one in command.named])
            asked = sides(command.named, people)
            await self._require_permission(command, asked, signals)
            try:
                return await self._links.link(command, asked, await self._make_room(command, people))
            except ServiceError as error:
                if error.reason != PEOPLE_MOVED or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _make_room(self, command: LinkCommand, people: People) -> frozenset[str]:
        """Who has to leave the person; as a rule nobody, and then nobody is asked.

        A refusal that is recorded while the link is made is of somebody who has left: as though it came a moment later.
        """
        crowded = crowd(command.named, people)
        if crowded is None:
            return frozenset()
        leaving = crowded.leaving(await self._consent.refusing(crowded.may_leave))
        if leaving is None:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "SUBJECT_FULL",
                f"a person has at most {MEMBERS_MAX} identities, and too few of theirs may give way (none that is "
                "strong, came first or has refused something): leave session ids out of links, or take old links back",
            )
        LINKS.labels("gave_way").inc(len(leaving))
        return leaving

    async def _require_permission(self, command: LinkCommand, asked: frozenset[Side], signals: Signals) -> None:
        """Refuse a link that those whom it would join do not allow.

        The authority read is sent after the call began, as in a Decide, so a refusal whose Record or Revoke had
        returned before Link was called is always seen. One that is recorded while the link is being made may come to
        stand beside it, as though the link had been made a moment earlier; Unlink takes it back. Closing that, too,
        would take a lock across two services, and the person would see the same: the two calls overlapped.
        That the people are those who were asked is checked under the link's own locks (LinkStore.link).
        """
        purposes = required_purposes(command.named)
        denied = denial(purposes, await self._consent.words(sorted(asked, key=repr), purposes, signals))
        if denied is not None:
            LINKS.labels("refused").inc()
            raise _not_allowed(denied)

    async def _answers(self, sought: Sequence[Sought | Contradiction]) -> list[Resolved | Contradiction]:
        answers = await self._look_up(sought)
        number = 1
        # Only somebody who was erased and came back costs another round trip, for their next generations all at once.
        while again := [k for k, one in enumerate(sought) if _has_generations(one) and answers[k] is ERASED]:
            numbers = range(number, number + GENERATIONS_TOGETHER)
            tried = [(k, _later(self._pepper, sought[k], each)) for k in again for each in numbers]
            found = await self._look_up([one for _, one in tried])
            for (k, _), one in reversed(list(zip(tried, found, strict=True))):
                if one is not ERASED:
                    answers[k] = one
            number = numbers.stop
        return answers

    async def _look_up(self, sought: Sequence[Sought | Contradiction]) -> list[Resolved | Contradiction]:
        wanted = {one.member_id for one in sought if isinstance(one, Sought)}
        found = await self._subjects.subjects(list(wanted)) if wanted else Found()
        return [one if isinstance(one, Contradiction) else answer(one, found, self._salt) for one in sought]

    async def _living(self, presented: tuple[Pseudonym, ...]) -> tuple[Pseudonym, ...]:
        """The generations of now: of whoever was erased the first that was not."""
        living, number = list(presented), 1
        while erased := (await self._subjects.subjects([one.member_id for one in living])).erased:
            living = [
                next_generation(self._pepper, first, number) if one.member_id in erased else one
                for one, first in zip(living, presented, strict=True)
            ]
            number += 1
        return tuple(sorted(living, key=lambda one: one.rank))


def _not_allowed(denied: Denial) -> ServiceError:
    purpose = denied.purpose
    reason = "IDENTITY_LINKING_NOT_ALLOWED" if purpose == IDENTITY_LINKING else "NAMESPACE_NOT_ALLOWED"
    why = (
        f"one of those whom it would join has refused {purpose}: only they can grant it again"
        if denied.refused
        else f"none of those whom it would join has granted {purpose}: declare the purpose, ask, and record the answer"
    )
    return ServiceError(Kind.FAILED_PRECONDITION, reason, f"the link may not be made, {why}")


def _refused(field: str, contradiction: Contradiction) -> ServiceError:
    """The caller's to mend; that nobody is named has a word of its own, because it may be a visitor's doing."""
    reason = {"reason": NOBODY.reason} if contradiction is NOBODY else {}
    return invalid(field, contradiction.problem, **reason)


def _has_generations(one: Sought | Contradiction) -> bool:
    """Whether an answer of "erased" means that a later generation is to be looked for: not of a pseudonym."""
    return isinstance(one, Sought) and one.first is not None


def _later(pepper: bytes, sought: Sought | Contradiction, number: int) -> Sought:
    assert isinstance(sought, Sought), "only who was looked up can be erased"
    assert sought.first is not None, "asked before"
    return replace(sought, member_id=next_generation(pepper, sought.first, number).member_id)


class KeyHandlers:
    """GetDataKeys."""

    def __init__(self, keys: KeyStore, accesses: AccessLog) -> None:
        self._keys = keys
        self._accesses = accesses

    async def data_keys(
        self, member_ids: Sequence[str], *, mint: bool, operations: Sequence[Operation]
    ) -> list[DataKey]:
        """One key a member asked for, in that order; with *mint* those that never were are made.

        Keys that are asked for without *mint* open what others wrote: that is recorded, once an operation.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        with span("identity.get_data_keys", {COMITY_BATCH_SIZE: len(member_ids)}):
            wanted = sorted(set(member_ids))
            found = dict(await self._keys.keys(wanted))
            missing = [member_id for member_id in wanted if member_id not in found]
            if mint and missing:
                # Whoever asked may be gone before it is done, and the next one needs it.
                found |= await uncancelled(self._keys.mint(missing))
                DATA_KEYS_MINTED.inc(len(missing))
            opened = [member_id for member_id, key in found.items() if key.key]
            if opened and not mint:
                await self._record(operations, opened)
            return [found.get(member_id) or DataKey(member_id) for member_id in member_ids]

    async def _record(self, operations: Sequence[Operation], opened: Sequence[str]) -> None:
        """What keys are opened for; of a caller that names no operation, whose they are."""
        for operation in operations:
            await self._accesses.operated(operation, KEYS_METHOD, member_ids=opened)
