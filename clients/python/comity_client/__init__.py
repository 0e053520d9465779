"""Client of Comity: a decision for every placement, within the deadline, whatever happens.

Owns the promise's last mile: when nothing answers in time, the caller's own defaults do.
"""

from comity_client.client import ComityClient
from comity_client.consent import Consent
from comity_client.errors import FieldProblem, InvalidRequestError, MissingDefaultError
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
    "FieldProblem",
    "Happening",
    "Identified",
    "InvalidRequestError",
    "MissingDefaultError",
    "Page",
    "Tracked",
]
