"""What there is to show and by which rules: all of a call, or none of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from services.chassis.errors import FieldProblem, Kind, ServiceError, invalid
from services.chassis.events import ORIGIN, LogPosition
from services.decision.domain.plan import refuse
from services.decision.domain.release import DeclaredItem, SentSite
from services.decision.domain.serving import Serving
from services.decision.domain.site import Site
from services.decision.handlers.ports import CatalogStore, FeatureSetReader, SiteStore
from services.decision.handlers.refresh import Refresher
from services.decision.rule_trial import refusals, rules_of


class ApplySite:
    """Lets a site decide; the one before stays, for replays and for a way back.

    It decides with the feature set that features published: that says whose consent each column needs.
    """

    def __init__(self, sites: SiteStore, feature_sets: FeatureSetReader, refresher: Refresher) -> None:
        self._sites = sites
        self._feature_sets = feature_sets
        self._refresher = refresher

    async def __call__(self, sent: SentSite, *, validate_only: bool) -> tuple[str, bool]:
        """The site's version, and whether it is another one than before.

        When this returns, this replica decides by the site; the others follow within a second.

        Raises:
            ServiceError: INVALID, a problem for each mistake; FAILED_PRECONDITION (FEATURE_SET_UNKNOWN); outages.
        """
        published = await self._feature_sets.published(sent.feature_set_version)
        if published is None and not validate_only:
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "FEATURE_SET_UNKNOWN",
                "feature_set.version: features has published no such set; publish it first",
            )
        declared = sent.bound_to(published)
        await _require_rules(declared.compiled.site)
        version = declared.compiled.site.version
        if validate_only:
            await self._refresher.refresh()
            current = self._refresher.serving().compiled
            return version, current is None or current.site.version != version
        changed = await self._sites.apply(declared)
        await self._refresher.refresh()
        return version, changed


async def _require_rules(site: Site) -> None:
    """Raises ServiceError INVALID (SITE_INVALID) for rules that are not bounded, fail or take too much."""
    rules = frozenset(rule for policy in site.policies for rule in rules_of(policy).values())
    refused = await asyncio.to_thread(refusals, rules)
    refuse(
        [
            FieldProblem(f"site.policies[{k}].{field}", f"{refused[rule]}; {refused[rule].remedy}")
            for k, policy in enumerate(site.policies)
            for field, rule in rules_of(policy).items()
            if rule in refused
        ]
    )


class UpsertItems:
    """Enters or changes items; an item is never removed, it is retired."""

    def __init__(self, catalog: CatalogStore, refresher: Refresher) -> None:
        self._catalog = catalog
        self._refresher = refresher

    async def __call__(self, items: Sequence[DeclaredItem], *, validate_only: bool) -> tuple[int, LogPosition]:
        """The catalog's version after it, and the position of its log; items that are as they were change nothing.

        Raises:
            ServiceError: INVALID when an item appears twice.
        """
        seen: set[str] = set()
        for k, declared in enumerate(items):
            if declared.item.id in seen:
                raise invalid(f"items[{k}].id", "appears twice in one call; send each item once")
            seen.add(declared.item.id)
        if validate_only:
            return self._refresher.serving().catalog.version, ORIGIN
        changed = await self._catalog.upsert(items)
        await self._refresher.refresh()
        return changed


class DescribeSite:
    """What decides now."""

    def __init__(self, sites: SiteStore, refresher: Refresher) -> None:
        self._sites = sites
        self._refresher = refresher

    async def __call__(self) -> tuple[bytes, Serving]:
        """The site as it was declared, and all that this replica decides with.

        Raises:
            ServiceError: FAILED_PRECONDITION (SITE_NOT_APPLIED).
        """
        serving = self._refresher.serving()
        if serving.compiled is None:
            raise ServiceError(Kind.FAILED_PRECONDITION, "SITE_NOT_APPLIED", "no site was applied yet; apply one first")
        return await self._sites.data(serving.compiled.site.version), serving


class ListItems:
    """The items there are."""

    def __init__(self, catalog: CatalogStore) -> None:
        self._catalog = catalog

    async def __call__(self) -> AsyncIterator[list[DeclaredItem]]:
        """Every item as it stands, by id, in pages."""
        page = await self._catalog.page()
        while page:
            yield page
            page = await self._catalog.page(after=page[-1].item.id)
