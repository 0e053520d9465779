"""RankLens: the platform held against real people's choices among films.

Recorded rankings go in as decisions made elsewhere, clicks as behavior, in the order of the data's own time; what
is scored is what RecordDecisions answers, so features, assembly and model are those that Decide uses.
"""

from learning.ranklens.events import Click, Film, Ranking, RankLensEvents, read_events
from learning.ranklens.run import RankLens, RankLensReport, RankLensRequest, RankLensSite

__all__ = [
    "Click",
    "Film",
    "RankLens",
    "RankLensEvents",
    "RankLensReport",
    "RankLensRequest",
    "RankLensSite",
    "Ranking",
    "read_events",
]
