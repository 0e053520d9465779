"""Every use of a person's data is accounted for: a purpose, a bound in time, and somebody who asks for it.

Owner, reason and retention are required by the protos' own limits, which the loader checks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cli.bundle.bundle import Bundle, Declared
from cli.bundle.checks.kinds import PERSONAL_KINDS, kind_of
from cli.bundle.problem import Problem


def unaccounted(bundle: Bundle) -> Iterator[Problem]:
    """Everything that uses a person's data without saying what for, for longer than said, or for nothing."""
    checks: tuple[Callable[[Bundle], Iterable[Problem]], ...] = (_nobodys, _aimless, _overlong, _unused)
    for check in checks:
        yield from check(bundle)


def _nobodys(bundle: Bundle) -> Iterator[Problem]:
    """A site for whose use of data nobody answers. Where site.yaml as a whole is missing the loader has said so."""
    if bundle.head.message.name and not bundle.head.message.controller.strip():
        yield bundle.head.problem(
            ".controller",
            "is missing: nobody answers to people for their data",
            "name the company or person who does, with an address, as receipts are to name it",
        )


def _aimless(bundle: Bundle) -> Iterator[Problem]:
    """What says something about a person, and not what for."""
    for feature in bundle.features:
        kind, _ = kind_of(feature.message)
        if kind in PERSONAL_KINDS and not feature.message.purposes:
            yield feature.problem(
                ".purposes", f"is empty, but {kind} tells something about a person", "name the purposes it is used for"
            )
    for event in bundle.events:
        if not event.message.purposes:
            yield event.problem(
                ".purposes", "is empty, but an event is something a person did", "name the purposes it is stored for"
            )


def _overlong(bundle: Bundle) -> Iterator[Problem]:
    """What is kept for longer than one of its purposes allows."""
    days_of = {purpose.message.id: purpose.message.retention_days for purpose in bundle.purposes}
    things: tuple[Declared[Any], ...] = (*bundle.features, *bundle.events)
    for thing in things:
        for purpose in thing.message.purposes:
            days_max = days_of.get(purpose, 0)
            if 0 < days_max < thing.message.retention_days:
                yield thing.problem(
                    ".retention_days",
                    f"is {thing.message.retention_days}, but purpose {purpose!r} keeps data for {days_max} days",
                    f"keep it for {days_max} days at most, or raise the purpose's retention_days and its version",
                )


def _unused(bundle: Bundle) -> Iterator[Problem]:
    """Placements that ask people for what no feature uses: one purpose of theirs has to be a feature's."""
    covered = {purpose for feature in bundle.features for purpose in feature.message.purposes}
    for placement in bundle.placements:
        if placement.message.purposes and covered.isdisjoint(placement.message.purposes):
            yield placement.problem(
                ".purposes",
                "are no feature's: people would be asked, and nothing of them would be used",
                "name the purposes of the features it ranks by",
            )
