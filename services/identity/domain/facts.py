"""What identity records."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from services.identity.domain.identities import Pseudonym


@dataclass(frozen=True, slots=True)
class IdentityLinked:
    """Identities were stated to belong to one person; *gave_way*: members that left the person to make room."""

    link_id: str
    subject_id: str
    named: tuple[Pseudonym, ...]
    gave_way: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubjectsMerged:
    """A subject took in the members of another one."""

    link_id: str
    subject_id: str
    member_ids: tuple[str, ...]
    merged_at: datetime


@dataclass(frozen=True, slots=True)
class IdentityUnlinked:
    """A link was taken back."""

    link_id: str
    subject_id: str


@dataclass(frozen=True, slots=True)
class SubjectsUnmerged:
    """Members of a subject belong to it no longer."""

    link_id: str
    subject_id: str
    member_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataKeyMinted:
    """A member has a data key."""

    member_id: str
    key_id: str

    @property
    def subject_id(self) -> str:
        """Who the fact is about."""
        return self.member_id


@dataclass(frozen=True, slots=True)
class DataKeyDestroyed:
    """A member's data key is gone for ever. The fact is about nobody: nothing about the member is recorded any more."""

    member_id: str
    key_id: str

    @property
    def subject_id(self) -> str:
        """Nobody."""
        return ""


@dataclass(frozen=True, slots=True)
class SubjectErased:
    """Members are gone with their links. The fact is about nobody, as DataKeyDestroyed."""

    erasure_id: str
    member_ids: tuple[str, ...]

    @property
    def subject_id(self) -> str:
        """Nobody."""
        return ""


Fact: TypeAlias = (
    IdentityLinked
    | SubjectsMerged
    | IdentityUnlinked
    | SubjectsUnmerged
    | DataKeyMinted
    | DataKeyDestroyed
    | SubjectErased
)


def named_in(fact: Fact) -> tuple[str, ...]:
    """The members that a fact about links names."""
    match fact:
        case IdentityLinked():
            return (fact.subject_id, *(one.member_id for one in fact.named), *fact.gave_way)
        case SubjectsMerged() | SubjectsUnmerged():
            return (fact.subject_id, *fact.member_ids)
        case _:
            return (fact.subject_id,)
