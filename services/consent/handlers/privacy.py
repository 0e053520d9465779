"""A person's rights over what is held about them: receipts, export, rectification, erasure, the record of processing.

Consent asks every service over HoldingsService, itself included; what a service holds and how it deletes it is its own.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import structlog

from services.chassis.errors import Kind, ServiceError
from services.chassis.ids import uuid7
from services.chassis.ports import Access
from services.chassis.tracing import span
from services.consent.domain.commands import Person, Who, check_who
from services.consent.domain.erasure import SERVICES, Erasure, erasure_unknown, nothing_held, refuse_overlap
from services.consent.domain.receipts import Signed, consent_receipt
from services.consent.handlers.erasing import suppress_everywhere
from services.consent.handlers.ledger import Pause
from services.consent.handlers.privacy_ports import Description, Page, Ports

EXPORT_METHOD = "comity.consent.v1.PrivacyService/Export"
RECTIFY_METHOD = "comity.consent.v1.PrivacyService/Rectify"
RECEIPT_METHOD = "comity.consent.v1.PrivacyService/GetReceipt"
# The digest of an erasure's request holds nothing of the person: after it the same identities mean somebody else, and a
# digest of the identities themselves would be kept longer than they.
ERASE_DIGEST = hashlib.sha256(b"erase").digest()

_log = structlog.get_logger(__name__)


class PrivacyHandlers:
    """Export, Rectify, Erase, GetErasure, ListErasures, GetReceipt, GetReceiptKey and Inventory.

    Args:
        drain_s: longest time a Decide may take: Erase is not answered before all that began earlier have ended.
        wake: tells the worker that there is something to do.
    """

    def __init__(self, ports: Ports, *, drain_s: float, pause: Pause, wake: Callable[[], None]) -> None:
        self._ports = ports
        self._drain_s = drain_s
        self._pause = pause
        self._wake = wake

    async def erase(self, request_id: str, who: Who, access: Access) -> str:
        """Begin an erasure. Once this has returned, no Decide uses the profile and nothing about the person is stored.

        Only consent itself has to be there for that, and identity to say who it is: what a service that is away still
        takes in is deleted with the rest, and no Decide may use it.

        Returns:
            The erasure's id.

        Raises:
            ServiceError: NOT_FOUND (NOTHING_HELD); see ErasureLedger.begin, IdentityReader.person and Participant.
        """
        check_who(who)
        with span("privacy.erase"):
            erasure_id = await self._begun_or_begin(request_id, who, access)
            # After a retry too: the first try may have been cut off here.
            await asyncio.gather(self._pause(self._drain_s), suppress_everywhere(self._ports, erasure_id))
            self._wake()
            return erasure_id

    async def erasure(self, erasure_id: str) -> Erasure:
        """How far an erasure is.

        Raises:
            ServiceError: NOT_FOUND (ERASURE_UNKNOWN).
        """
        found = await self._ports.erasures.find(erasure_id)
        if found is None:
            raise erasure_unknown()
        return found

    async def erasures_after(self, number: int) -> list[Erasure]:
        """A page of the ledger of erasures."""
        return await self._ports.erasures.after(number)

    async def export(self, who: Who, access: Access) -> AsyncIterator[tuple[str, Page]]:
        """Everything that any service holds, page by page with the service's name; the read itself is a fact.

        Raises:
            ServiceError: UNAVAILABLE, also in the middle: what came before it is not the whole; FAILED_PRECONDITION
                (ERASURE_RUNNING), also at the end, where an erasure began meanwhile; NOT_FOUND (NOTHING_HELD).
        """
        check_who(who)
        person = await self._person(who)
        if not await self._holds_anything(person.member_ids):
            raise nothing_held()
        await self._ports.accesses.accessed(person.subject_id, access, EXPORT_METHOD)
        for name in SERVICES:
            async for page in self._ports.participants[name].export(person.member_ids):
                yield name, page
        await self._refuse_erased(person.member_ids)

    async def rectify(self, who: Who, request: Any, access: Access) -> int:
        """Put a property of recorded behavior right; how many events it changed.

        Raises:
            ServiceError: FAILED_PRECONDITION (ERASURE_RUNNING, SUBJECT_ERASED); see Rectifier.rectify.
        """
        check_who(who)
        with span("privacy.rectify"):
            person = await self._person(who)
            await self._ports.accesses.accessed(person.subject_id, access, RECTIFY_METHOD)
            return await self._ports.rectifier.rectify(person.member_ids, request)

    async def receipt(self, who: Who, consent_version: int, access: Access) -> Signed:
        """The signed receipt of a change of consent.

        Raises:
            ServiceError: NOT_FOUND (CONSENT_VERSION_UNKNOWN); see IdentityReader.person.
        """
        check_who(who)
        with span("privacy.receipt"):
            person = await self._whose_ledger(who)
            # The member that facts are recorded under now comes first: its versions are those the caller was told.
            members = dict.fromkeys((person.member_id, *person.member_ids))
            found = await self._ports.receipts.change(list(members), consent_version)
            if found is None:
                raise ServiceError(
                    Kind.NOT_FOUND,
                    "CONSENT_VERSION_UNKNOWN",
                    "consent_version: the person's ledger has no such version",
                )
            member_id, answers = found
            controller, policy_version, terms = await self._ports.receipts.terms(answers)
            await self._ports.accesses.accessed(person.subject_id, access, RECEIPT_METHOD)
            content = consent_receipt(controller, member_id, answers, terms, policy_version)
            return self._ports.signer.sign(content)

    def receipt_key(self) -> bytes:
        """The public key that receipts are signed for now, 32 bytes; nobody's data."""
        return self._ports.signer.public_key

    async def inventory(self) -> list[tuple[str, Description]]:
        """The record of processing, service by service.

        Raises:
            ServiceError: UNAVAILABLE naming the service that is away: a part would pass for the whole.
        """
        with span("privacy.inventory"):
            described = await asyncio.gather(*(self._ports.participants[name].describe() for name in SERVICES))
            return list(zip(SERVICES, described, strict=True))

    async def _begun_or_begin(self, request_id: str, who: Who, access: Access) -> str:
        erasure_id = await self._ports.erasures.begun(request_id, ERASE_DIGEST)
        if erasure_id is not None:
            await self._refuse_another(erasure_id, who)
            return erasure_id
        try:
            return await self._begin(request_id, who, access)
        except ServiceError as error:
            # The same request, sent twice at once, may have begun it since: that is this erasure and no other one.
            erasure_id = await self._ports.erasures.begun(request_id, ERASE_DIGEST)
            if erasure_id is None:
                raise error
            await self._refuse_another(erasure_id, who)
            return erasure_id

    async def _refuse_another(self, erasure_id: str, who: Who) -> None:
        """Refuse a request id that began the erasure of somebody else, who would pass for erased.

        Identities of the erased name a new person, of whom nothing is held: that is taken for a retry, and rightly, for
        there is nothing to erase of whoever it is.

        Raises:
            ServiceError: ALREADY_EXISTS (REQUEST_ID_REUSED); see IdentityReader.person and Participant.export.
        """
        erased = (await self.erasure(erasure_id)).member_ids
        if who.subject_id in erased:
            return
        person = None if who.subject_id else await self._ports.identity.person(who)
        if person is not None and (person.member_id in erased or not await self._holds_anything(person.member_ids)):
            return
        raise ServiceError(
            Kind.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            "request_id: began the erasure of somebody else; nothing of this person was erased now: use a new one",
        )

    async def _begin(self, request_id: str, who: Who, access: Access) -> str:
        person = await self._person(who)
        if not await self._holds_anything(person.member_ids):
            raise nothing_held()
        now = self._ports.clock.now()
        erasure_id, fresh = await self._ports.erasures.begin(uuid7(now), person, request_id, ERASE_DIGEST, access)
        if fresh:
            _log.info("erasure begun", erasure_id=erasure_id, members_count=len(person.member_ids))
        return erasure_id

    async def _holds_anything(self, member_ids: Sequence[str]) -> bool:
        """Whether any service does; those are asked first that know of nearly everybody."""
        for name in ("consent", *(name for name in SERVICES if name != "consent")):
            async for _ in self._ports.participants[name].export(member_ids):
                return True
        return False

    async def _person(self, who: Who) -> Person:
        """The whole person, who is not erased nor being erased.

        Raises:
            ServiceError: as of IdentityReader.person; FAILED_PRECONDITION (ERASURE_RUNNING, SUBJECT_ERASED).
        """
        if who.subject_id:
            # Asked first, because identity no longer knows an erased one and could not say whether it is under way.
            await self._refuse_erased((who.subject_id,))
        person = await self._ports.identity.person(who)
        await self._refuse_erased(person.member_ids)
        return person

    async def _refuse_erased(self, member_ids: Sequence[str]) -> None:
        refuse_overlap(await self._ports.erasures.naming(member_ids))

    async def _whose_ledger(self, who: Who) -> Person:
        """An erased person's ledger is kept, and can be read by its pseudonym, which identity no longer knows."""
        if who.subject_id and await self._ports.erasures.naming((who.subject_id,)):
            return Person(who.subject_id, who.subject_id, (who.subject_id,))
        return await self._ports.identity.person(who)
