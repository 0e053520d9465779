"""The ports of the use cases over Postgres."""

from services.decision.store.catalog import PostgresCatalog
from services.decision.store.holdings import DecisionHoldings
from services.decision.store.log import SealedDecisionLog
from services.decision.store.models import PostgresModels
from services.decision.store.sites import PostgresSites
from services.decision.store.standing import PostgresStanding

__all__ = [
    "DecisionHoldings",
    "PostgresCatalog",
    "PostgresModels",
    "PostgresSites",
    "PostgresStanding",
    "SealedDecisionLog",
]
