"""Notices: what people were told when they answered, and whether consent can have been given under one."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from services.consent.domain.ledger import NEVER


@dataclass(frozen=True, slots=True)
class Notice:
    """A version of what people are told.

    Args:
        languages: BCP 47 tags that it was shown in.
        purposes: that it names: consent under it can be given to these and no others.
        retired_at: first moment at which nobody is shown it any more; NEVER: it is in use.
    """

    version: str
    languages: tuple[str, ...]
    purposes: tuple[str, ...]
    url: str = ""
    retired_at: datetime = NEVER

    def has_language(self, tag: str) -> bool:
        """Whether it was shown in the language; tags do not tell upper from lower case (BCP 47, 2.1.1)."""
        return tag.lower() in (one.lower() for one in self.languages)


def changes(before: Notice, after: Notice) -> Iterator[tuple[str, str]]:
    """Field and problem of each change that would make consent given under the notice mean something else."""
    if set(before.purposes) != set(after.purposes):
        yield "purposes", "differ from those declared under this version before; give the new text a version of its own"
    for language in sorted(set(before.languages) - set(after.languages)):
        yield "languages", f"lack {language}, which it was shown in; keep it"
