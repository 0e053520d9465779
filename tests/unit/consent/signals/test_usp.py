"""US Privacy strings."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent.domain.signals.errors import Code, ConsentStringError
from services.consent.domain.signals.usp import Answer, UspString, decode_usp
from tests.unit.consent.signals import encode
from tests.unit.consent.signals.mutations import accepted

ALL = {"1" + "".join(letters) for letters in product("YN-", repeat=3)}


@pytest.mark.parametrize("text", sorted(ALL))
def test_all_27_are_read(text: str) -> None:
    """Each letter is an answer to one question."""
    assert encode.usp(decode_usp(text)) == text


def test_the_answers_have_their_places() -> None:
    """Notice, opt-out, agreement."""
    assert decode_usp("1YN-") == UspString(Answer.YES, Answer.NO, Answer.NOT_APPLICABLE)


@pytest.mark.parametrize(
    ("text", "code", "position"),
    [
        ("", Code.VERSION_UNSUPPORTED, 0),
        (" ", Code.VERSION_UNSUPPORTED, 0),
        ("2YNN", Code.VERSION_UNSUPPORTED, 0),
        ("1", Code.TRUNCATED, 1),
        ("1YN", Code.TRUNCATED, 3),
        ("1YNNN", Code.TRAILING_DATA, 4),
        ("1YNN ", Code.TRAILING_DATA, 4),
        ("1yNN", Code.VALUE_UNDEFINED, 1),
        ("1Y N", Code.VALUE_UNDEFINED, 2),
        ("1YN\uff0d", Code.VALUE_UNDEFINED, 3),
    ],
)
def test_others_are_refused(text: str, code: Code, position: int) -> None:
    """Each for what it is."""
    with pytest.raises(ConsentStringError) as refused:
        decode_usp(text)
    assert (refused.value.problem.code, refused.value.problem.position) == (code, position)


@given(st.text("12YNyn- ", max_size=6))
def test_only_the_27_are_read(text: str) -> None:
    """Nothing else is."""
    assert bool(list(accepted(iter([text]), decode_usp))) == (text in ALL)
