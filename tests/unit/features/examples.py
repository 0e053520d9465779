"""Small catalogs and behavior that the tests of the domain share."""

from collections.abc import Sequence

from hypothesis import strategies as st

from services.chassis.events import LogPosition
from services.features.domain.aggregates import MemberLayout
from services.features.domain.catalog import CatalogItem
from services.features.domain.declared import (
    CategoryAffinity,
    CategoryRate,
    Feature,
    ItemAttribute,
    ItemCategory,
    ItemCount,
    ItemRate,
    Kind,
    Similarity,
    SubjectCount,
    SubjectRate,
    SubjectRecency,
    Transform,
)
from services.features.domain.feature_set import FeatureSet, compile_features
from services.features.domain.members import Behavior, Contributions, MemberState, contribution, empty, fold

MEMBERS = tuple(letter * 26 for letter in "abcd")
DAY_S = 86_400.0
# Far from 1970, where a float's steps are as coarse as in real data.
START_S = 1.7e9

ITEMS = (
    CatalogItem("boots", {"price": 90.0}, {"kind": ("shoes",), "color": ("red", "black")}),
    CatalogItem("coat", {"price": 200.0}, {"kind": ("jackets",), "color": ("black",)}),
    CatalogItem("novel", {}, {"kind": ("books",)}),
    CatalogItem("plain"),
)


def feature(name: str, kind: Kind, *, freshness_s: int = 0) -> Feature:
    """A declaration; features about people need the purpose `profile`."""
    return Feature(name, kind, "for a test", ("profile",), "tests", "to test", 30, freshness_s)


EVERYTHING = (
    feature("price", ItemAttribute("price", Transform.LOG1P)),
    feature("kind", ItemCategory("kind", ("shoes", "books"))),
    feature("clicks", ItemCount("click", DAY_S)),
    feature("rate", ItemRate("click", "exposure", 10.0)),
    feature("color_rate", CategoryRate("color", "click", "exposure", 2.0)),
    feature("my_clicks", SubjectCount("click", DAY_S, Transform.LOG1P)),
    feature("my_rate", SubjectRate("click", "exposure", 2.0, 0.2)),
    feature("my_recency", SubjectRecency("click", DAY_S)),
    feature("my_kinds", CategoryAffinity("kind", "click", 8, "exposure", 1.0)),
    feature("my_shares", CategoryAffinity("kind", "click", 8, half_life_s=DAY_S)),
    feature("like_mine", Similarity(("kind", "color"), "click", 16)),
)


def everything() -> FeatureSet:
    """A feature set with every kind that behavior and the catalog feed."""
    return compile_features(EVERYTHING)


def contributions(layout: MemberLayout) -> Contributions:
    """What events on ITEMS add to states of this layout."""
    known = {item.id: contribution(layout, item) for item in ITEMS}
    return lambda item_id, at_s: known.get(item_id)


def folded(layout: MemberLayout, events: Sequence[Behavior], member_id: str = MEMBERS[0]) -> MemberState:
    """The state of a member after these events."""
    return fold(layout, empty(layout, member_id), events, contributions(layout))


def behavior(
    number: int, event_type: str, *item_ids: str, at_s: float = START_S, member_id: str = MEMBERS[0]
) -> Behavior:
    """Event *number* of the log."""
    return Behavior(member_id, event_type, item_ids, at_s, LogPosition(1, number, number))


@st.composite
def histories(draw: st.DrawFn, *, members: Sequence[str] = MEMBERS[:1], max_size: int = 12) -> list[Behavior]:
    """Behavior in order of position; its times may go back, and items may be unknown to the catalog."""
    told = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["click", "exposure", "page_viewed"]),
                st.lists(st.sampled_from(["boots", "coat", "novel", "plain", "unheard_of"]), max_size=4),
                st.integers(0, 30 * 86_400_000),
                st.sampled_from(members),
            ),
            max_size=max_size,
        )
    )
    return [
        behavior(number, event_type, *item_ids, at_s=START_S + after_ms / 1000, member_id=member_id)
        for number, (event_type, item_ids, after_ms, member_id) in enumerate(told, start=1)
    ]
