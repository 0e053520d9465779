"""What people type on the command line → what requests hold."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer
from comity.common.v1 import types_pb2 as types_pb

Identities: TypeAlias = Annotated[
    list[str],
    typer.Option("--identity", metavar="NAMESPACE:VALUE", help="Who it is about, e.g. user_id:42; may be repeated."),
]
AnyIdentities: TypeAlias = Annotated[
    list[str],
    typer.Option("--identity", metavar="NAMESPACE:VALUE", help="Who it is about, e.g. user_id:42; may be repeated."),
]
SubjectId: TypeAlias = Annotated[
    str, typer.Option("--subject", metavar="SUBJECT_ID", help="The pseudonym instead, as the services give it.")
]
Fact: TypeAlias = str | float | bool


def parse_identities(texts: Sequence[str]) -> dict[str, str]:
    """`user_id:42` → {"user_id": "42"}; the value may hold colons."""
    found: dict[str, str] = {}
    for text in texts:
        namespace, colon, value = text.partition(":")
        if not (namespace and colon and value):
            raise typer.BadParameter("write NAMESPACE:VALUE, e.g. user_id:42", param_hint="--identity")
        if namespace in found:
            raise typer.BadParameter(f"{namespace} is given twice; one person has one", param_hint="--identity")
        found[namespace] = value
    return found


def parse_subject(identities: Sequence[str], subject_id: str) -> types_pb.SubjectRef:
    """The person meant: by identities, or by the pseudonym."""
    if bool(identities) == bool(subject_id):
        raise typer.BadParameter("say who it is: --identity NAMESPACE:VALUE or --subject", param_hint="--identity")
    pairs = parse_identities(identities).items()
    return types_pb.SubjectRef(
        subject_id=subject_id, identities=[types_pb.Identity(namespace=name, value=value) for name, value in pairs]
    )


def parse_facts(texts: Sequence[str], option: str) -> dict[str, Fact]:
    """`hour=20` → 20.0, `gift=true` → True, `device=phone` and `code="20"` → text."""
    found: dict[str, Fact] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise typer.BadParameter("write KEY=VALUE, e.g. hour=20", param_hint=option)
        found[key] = _fact(value)
    return found


def _fact(text: str) -> Fact:
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    try:
        return float(text)
    except ValueError:
        return text
