"""Names that must not be used about people: the built-in list, the site's own never.yaml, and declared stand-ins.

Names are looked at: of features and what they read, of events and their properties, of purposes, of policies and what
their rules read. Of values only those that an audience compares with, for they say who is meant; the values of items
are not people's. What data holds under an innocent name no list of words can tell.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cli.bundle.bundle import Bundle, Declared
from cli.bundle.checks.kinds import attributes_of
from cli.bundle.checks.never_list import BUILT_IN
from cli.bundle.problem import Problem
from services.decision.domain.rules import names_of, texts_of

# hasHIV, HIVStatus, ssn2. Two small letters after an acronym's last capital: the plural IDs is one word.
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[a-z])")
_BREAK = re.compile(r"[^a-z0-9]+")
_SIBILANT_PLURAL = re.compile(r"(ss|sh|ch|x|zz)es$")


@dataclass(frozen=True, slots=True)
class Forbidden:
    """One thing that a name must not say.

    Args:
        phrase: one word, or several with `_` between them.
        because: the rest of the sentence that begins with the name.
    """

    phrase: str
    because: str

    def is_in(self, name: str) -> bool:
        """Whether the name says it: as whole words, or written together as one."""
        words, wanted = words_of(name), words_of(self.phrase)
        runs = (words[start : start + len(wanted)] for start in range(len(words) - len(wanted) + 1))
        return wanted in runs or _singular(self.phrase.replace("_", "")) in words


def forbidden_names(bundle: Bundle) -> Iterator[Problem]:
    """Every name that the list forbids and never.yaml does not allow, and every allowance that is none."""
    forbidden = [*_built_in(), *_declared(bundle)]
    allowed = {exception.name.lower() for exception in bundle.never.message.allow}
    refused: set[str] = set()
    for thing, path, name in _names(bundle):
        found = next((one for one in forbidden if one.is_in(name)), None)
        if found is None:
            continue
        refused.add(name.lower())
        if name.lower() not in allowed:
            remedy = "remove it, or name who answers for it and why under `allow` of never.yaml"
            yield thing.problem(path, f"{name!r} {found.because}", remedy)
    for i, exception in enumerate(bundle.never.message.allow):
        if exception.name.lower() not in refused:
            what = f"{exception.name!r} is refused nowhere in this bundle"
            yield bundle.never.problem(f".allow[{i}].name", what, "remove it, or write the name as it is declared")


@lru_cache(maxsize=4096)  # a bundle has some hundred names, the lists as many phrases, and all are compared
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in small letters and the singular: `postalCodes` is postal, code."""
    split = _BREAK.split(_HUMP.sub("_", name).lower())
    return tuple(_singular(word) for word in split if word)


def _singular(word: str) -> str:
    """English plurals only, and crudely: both sides of a comparison pass through here."""
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if _SIBILANT_PLURAL.search(word):
        return word[:-2]
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


def _built_in() -> Iterator[Forbidden]:
    for category in BUILT_IN:
        because = f"tells of {category.what}, which is never used about people ({category.source})"
        for phrase in (category.name, *category.synonyms):
            yield Forbidden(phrase, because)


def _declared(bundle: Bundle) -> Iterator[Forbidden]:
    synonyms = {category.name: category.synonyms for category in BUILT_IN}
    for i, rule in enumerate(bundle.never.message.rules):
        line = bundle.never.problem(f".rules[{i}]", "", "").line
        by = f"by {bundle.never.file}:{line}: {rule.reason}"
        for phrase in (rule.attribute, *synonyms.get(rule.attribute, ())):
            yield Forbidden(phrase, f"is never used about people, {by}")
        for phrase in rule.proxies:
            yield Forbidden(phrase, f"stands in for {rule.attribute}, which is never used, {by}")


def _names(bundle: Bundle) -> Iterator[tuple[Declared[Any], str, str]]:
    """Each thing that has names, the field where the name stands, and the name."""
    for purpose in bundle.purposes:
        yield purpose, ".id", purpose.message.id
    for event in bundle.events:
        yield event, ".type", event.message.type
        for i, declared in enumerate(event.message.properties):
            yield event, f".properties[{i}].name", declared.name
    for feature in bundle.features:
        yield feature, ".name", feature.message.name
        for path, name in attributes_of(feature.message):
            yield feature, path, name
        if feature.message.HasField("context_value"):
            yield feature, ".context_value.key", feature.message.context_value.key
    for policy in bundle.policies:
        yield policy, ".id", policy.message.id
        for rule in ("eligibility", "audience"):
            source = getattr(policy.message, rule)
            # An audience's values say who is meant; those of eligibility are items', and may leave some out.
            values = texts_of(source) if rule == "audience" else frozenset()
            for name in sorted(names_of(source) | values):
                yield policy, f".{rule}", name
