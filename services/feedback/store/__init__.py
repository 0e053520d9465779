"""The ports over this service's own Postgres database; each SQL statement stands beside the function that runs it."""

from services.feedback.store.archive import PostgresArchive
from services.feedback.store.behavior import SealedBehaviorLog
from services.feedback.store.decisions import PostgresDecisions, take_in
from services.feedback.store.holdings import FeedbackHoldings
from services.feedback.store.progress import PostgresProgress
from services.feedback.store.rectification import PostgresRecordedBehavior
from services.feedback.store.schemas import PostgresSchemas
from services.feedback.store.unread import JoinerLetters

__all__ = [
    "FeedbackHoldings",
    "JoinerLetters",
    "PostgresArchive",
    "PostgresDecisions",
    "PostgresProgress",
    "PostgresRecordedBehavior",
    "PostgresSchemas",
    "SealedBehaviorLog",
    "take_in",
]
