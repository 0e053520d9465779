"""The ledger of consent: what people answered, recorded, taken back and read."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from comity.consent.v1 import consent_service_pb2_grpc as consent_grpc

from comity_client import wire_people
from comity_client.errors import FieldError
from comity_client.failures import Failures
from comity_client.results import ConsentChange, ConsentHistory, ConsentState
from comity_client.transport import Outcome, Transport


class Consent:
    """Records, takes back and reads what people agreed to; ComityClient.consent.

    A person is named by identities (namespace → value) or by the subject_id that an earlier answer gave. What a visitor
    brings raises nothing: where it names nobody the status is REFUSED. Outages raise nothing either: look at `status`.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        *,
        deadline_s: float,
        failures: Failures,
    ) -> None:
        self._transport = transport
        self._failures = failures
        self._address = address
        self._deadline_s = deadline_s

    async def record(
        self,
        *,
        answers: Mapping[str, ConsentState | bool],
        identities: Mapping[str, str | None] | None = None,
        subject_id: str = "",
        notice_version: str = "",
        notice_language: str = "",
        mechanism: str = "",
        collected_at: datetime | None = None,
        expires_at: datetime | None = None,
        source_hash: str = "",
        jurisdiction: str = "",
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> ConsentChange:
        """Record answers to purposes: all of them, or none.

        Args:
            answers: purpose → GRANTED, DENIED or OBJECTED; True and False are the first two.
            notice_version, notice_language: what the person was told; a site that declares notices needs both.
            mechanism: how it was collected: banner, account_settings, …
            collected_at: when the person answered, aware; now when not given.
            expires_at: aware; the consent does not expire when not given.
            source_hash: SHA-256, hex, of what the answers were read from.
            jurisdiction: where the person is, as the site names it.
            request_id: the same id is recorded once for a person; one is drawn when not given.

        Raises:
            InvalidRequestError: the request is wrong, here or to the server (unless raise_on_invalid is off).
        """
        return await self._change(
            request_id,
            lambda own_id: wire_people.record_request(
                own_id,
                wire_people.subject_of(identities, subject_id),
                answers,
                notice_version=notice_version,
                notice_language=notice_language,
                mechanism=mechanism,
                collected_at=collected_at,
                expires_at=expires_at,
                source_hash=source_hash,
                jurisdiction=jurisdiction,
            ),
            "Record",
            deadline_s,
        )

    async def revoke(
        self,
        *,
        identities: Mapping[str, str | None] | None = None,
        subject_id: str = "",
        purposes: Sequence[str] = (),
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> ConsentChange:
        """Take consent back: once it is DONE no decision uses the profile for these purposes, none under way either.

        Args:
            purposes: none: all of the site.

        Raises:
            InvalidRequestError: as of record.
        """
        return await self._change(
            request_id,
            lambda own_id: wire_people.revoke_request(own_id, wire_people.subject_of(identities, subject_id), purposes),
            "Revoke",
            deadline_s,
        )

    async def object(
        self,
        *,
        identities: Mapping[str, str | None] | None = None,
        subject_id: str = "",
        purposes: Sequence[str] = (),
        mechanism: str = "",
        jurisdiction: str = "",
        request_id: str | None = None,
        deadline_s: float | None = None,
    ) -> ConsentChange:
        """Record an objection (GDPR Art. 21).

        Args:
            purposes: none: to personalization as such, every purpose that personalizes.

        Raises:
            InvalidRequestError: as of record.
        """
        return await self._change(
            request_id,
            lambda own_id: wire_people.record_request(
                own_id,
                wire_people.subject_of(identities, subject_id),
                dict.fromkeys(purposes, "OBJECTED"),
                mechanism=mechanism,
                jurisdiction=jurisdiction,
                do_not_personalize=not purposes,
            ),
            "Record",
            deadline_s,
        )

    async def history(
        self,
        *,
        accessor: str,
        reason: str,
        identities: Mapping[str, str | None] | None = None,
        subject_id: str = "",
        deadline_s: float | None = None,
    ) -> ConsentHistory:
        """Every answer the person gave, under whichever identity, the oldest first; that it was read is recorded.

        Args:
            accessor: who reads: a person or system, never the subject's own identifier.
            reason: why, e.g. "shown to the person in their account".

        Raises:
            InvalidRequestError: as of record.
        """
        try:
            request = wire_people.history_request(wire_people.subject_of(identities, subject_id), accessor, reason)
        except FieldError as error:
            outcome = self._transport.refuse(error)
        else:
            outcome = await self._ask("History", request, deadline_s)
        self._failures.ended("History", outcome)
        return wire_people.history_of(outcome)

    async def _change(
        self,
        request_id: str | None,
        write: Callable[[str], Any],
        method: str,
        deadline_s: float | None,
    ) -> ConsentChange:
        own_id = request_id or uuid.uuid4().hex
        try:
            request = write(own_id)
        except FieldError as error:
            outcome = self._transport.refuse(error)
        else:
            outcome = await self._ask(method, request, deadline_s)
        change = wire_people.change_of(outcome, request_id=own_id)
        self._failures.ended(method, outcome, is_sound=change.status != "NOT_DELIVERED")
        return change

    async def _ask(self, method: str, request: Any, deadline_s: float | None) -> Outcome:
        deadline_at = asyncio.get_running_loop().time() + (self._deadline_s if deadline_s is None else deadline_s)
        return await self._transport.ask(
            self._address,
            lambda channel: getattr(consent_grpc.ConsentServiceStub(channel), method),
            request,
            deadline_at,
        )
