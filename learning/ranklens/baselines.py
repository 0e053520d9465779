"""The simple rankers that the platform has to beat, over the same events and by the same visibility."""

from collections.abc import Callable

from learning.evaluate import MeanNdcg, SmoothedRate
from learning.ranklens.events import Ranking, RankLensEvents

POPULARITY = "popularity"


def baselines(events: RankLensEvents, is_scored: Callable[[Ranking], bool]) -> dict[str, dict[str, float]]:
    """NDCG of the order by the films' popularity number, and by smoothed click rate.

    Both know at a ranking what happened strictly before it; a film without metadata has popularity 0.
    """
    rate, popularity = SmoothedRate(), dict[str, float]()
    by_popularity, by_rate = MeanNdcg(), MeanNdcg()
    for moment in events.moments():
        for ranking in filter(is_scored, moment.rankings):
            liked = events.liked_in(ranking)
            if liked:
                items = ranking.item_ids
                by_popularity.add(items, liked, [popularity.get(item_id, 0.0) for item_id in items])
                by_rate.add(items, liked, rate.scores(items))
        for film in moment.films:
            popularity[film.item.id] = film.item.numbers.get(POPULARITY, 0.0)
        for ranking in moment.rankings:
            rate.shown(ranking.item_ids)
        for click in moment.clicks:
            rate.clicked(click.item_id)
    return {"popularity": by_popularity.report(), "ctr": by_rate.report()}
