"""All feature sets that were ever published, and the layouts that states were written in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from services.features.domain.aggregates import Counted, ItemLayout, MemberLayout
from services.features.domain.feature_set import FeatureSet


@dataclass(frozen=True)
class Book:
    """What is counted is what any published set needs: a set that comes back finds its history kept.

    Args:
        sets: by version, in the order they were first published.
        active: version of the newest publication; empty before the first.
        is_whole: every set that was published is here; else layouts are others than those that are written.
    """

    sets: Mapping[str, FeatureSet] = field(default_factory=dict)
    active: str = ""
    is_whole: bool = True

    def version_of(self, feature_set: FeatureSet) -> str:
        """The version that a set which computes the same was published under, the active one's first; else its own.

        Releases before hashed the words too: what their sets' models read goes on fitting.
        """
        published = [*self.sets.values(), *filter(None, [self.sets.get(self.active)])]
        same = [known.version for known in published if known.computed == feature_set.computed]
        return same[-1] if same else feature_set.version

    @cached_property
    def _counted(self) -> list[Counted]:
        """What was counted after each first publication."""
        counted, all_counted = Counted(), [Counted()]
        for feature_set in self.sets.values():
            counted |= feature_set.counted
            all_counted.append(counted)
        return all_counted

    @cached_property
    def member_layout(self) -> MemberLayout:
        """The layout that member states are written in now."""
        return MemberLayout.of(self._counted[-1])

    @cached_property
    def member_layouts(self) -> dict[str, MemberLayout]:
        """Every layout that member states were ever written in."""
        return {layout.version: layout for layout in map(MemberLayout.of, self._counted)}

    @cached_property
    def item_layout(self) -> ItemLayout:
        """The layout that item blocks are written in now."""
        return ItemLayout.of(self._counted[-1])

    @cached_property
    def item_layouts(self) -> dict[str, ItemLayout]:
        """Every layout that item blocks were ever written in."""
        return {layout.version: layout for layout in map(ItemLayout.of, self._counted)}
