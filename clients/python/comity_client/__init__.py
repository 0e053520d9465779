"""Client of Comity: a decision for every placement, within the deadline, whatever happens.

Owns the promise's last mile: when nothing answers in time, the caller's own defaults do.
"""

from comity_client.blocking import SyncComityClient, SyncConsent
from comity_client.client import ComityClient
from comity_client.consent import Consent
from comity_client.errors import (
    FieldProblem,
    ForkedError,
    InvalidAddressError,
    InvalidRequestError,
    MissingDefaultError,
)
from comity_client.failures import Failure
from comity_client.reasons import FallbackReason, PeopleReason, Reason, TrackReason
from comity_client.results import (
    ConsentChange,
    ConsentHistory,
    ConsentRecord,
    ConsentSignals,
    Decision,
    Entry,
    Happening,
    Identified,
    Page,
    Placement,
    Tracked,
)

__all__ = [
    "ComityClient",
    "Consent",
    "ConsentChange",
    "ConsentHistory",
    "ConsentRecord",
    "ConsentSignals",
    "Decision",
    "Entry",
    "Failure",
    "FallbackReason",
    "FieldProblem",
    "ForkedError",
    "Happening",
    "Identified",
    "InvalidAddressError",
    "InvalidRequestError",
    "MissingDefaultError",
    "Page",
    "PeopleReason",
    "Placement",
    "Reason",
    "SyncComityClient",
    "SyncConsent",
    "TrackReason",
    "Tracked",
]
