"""What is planted is found, in every form and at every place; what is not there is not."""

import base64
import secrets
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.privacy.scan import Hit, Scanner, forms_of_bytes, forms_of_text

CANARY = "jane.doe+17@example.org"
STORED = {
    "plain": CANARY.encode(),
    "utf-16le": CANARY.encode("utf-16-le"),
    "utf-16be": CANARY.encode("utf-16-be"),
    "percent": quote(CANARY, safe="").encode(),
    "percent-lower": quote(CANARY, safe="").replace("%2B", "%2b").encode(),
    "hex": CANARY.encode().hex().encode(),
    "hex-upper": CANARY.encode().hex().upper().encode(),
    **{f"base64+{n}": base64.b64encode(b"xyz"[:n] + CANARY.encode() + b"abcd") for n in range(3)},
    **{f"base64url+{n}": base64.urlsafe_b64encode(b"xyz"[:n] + CANARY.encode() + b"\xff\xfe") for n in range(3)},
}


@pytest.mark.parametrize("form", STORED)
def test_every_form_is_found(form: str) -> None:
    """Planted in noise at every alignment; the place is that of the planted bytes."""
    scanner = Scanner([forms_of_text("somebody else entirely"), forms_of_text(CANARY)])
    for shift in range(9):
        data = secrets.token_bytes(64 + shift) + STORED[form] + secrets.token_bytes(64)
        hits = scanner.scan(data)
        assert {hit.canary for hit in hits} == {1}
        assert all(64 + shift <= hit.offset < 64 + shift + 8 for hit in hits)


@pytest.mark.parametrize("form", sorted(set(STORED) - {"percent-lower", "base64url+0", "base64url+1", "base64url+2"}))
def test_a_form_that_is_left_out_is_missed(form: str) -> None:
    """The test above fails without the form that it is about."""
    forms = forms_of_text(CANARY)
    kept = {name: data for name, data in forms.items() if name.removesuffix("-lower") != form}
    assert not Scanner([kept]).scan(b"......." + STORED[form] + b"......")


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("Zo\u00eb \U0001f600 M\u00fcller", b'{"n": "Zo\\u00eb \\ud83d\\ude00 M\\u00fcller"}'),
        ('Jane "JD" Doe', b'"Jane \\"JD\\" Doe"'),
        ("O'Brien & Sons", b"<td>O&#x27;Brien &amp; Sons</td>"),
        ("Zo\u00eb M\u00fcller", "Zoe\u0308 Mu\u0308ller".encode()),
        ("Zoe\u0308 Mu\u0308ller", "Zo\u00eb M\u00fcller".encode()),
        ("\u65e5\u672c\u8a9e", "...\u65e5\u672c\u8a9e...".encode()),
    ],
)
def test_a_name_is_found_as_software_writes_it(text: str, stored: bytes) -> None:
    """Escaped for JSON and HTML, composed and decomposed; and where one of its forms is too short, by the others."""
    assert Scanner([forms_of_text(text)]).scan(b"\0" * 5 + stored + b"\0" * 9)


def test_base64_of_url_alphabet_is_found_where_it_differs() -> None:
    """A string whose base64 has a plus or a slash."""
    text = "???>>>~~~???>>>~~~"
    planted = base64.urlsafe_b64encode(text.encode())
    assert b"-" in planted or b"_" in planted
    assert [hit.form for hit in Scanner([forms_of_text(text)]).scan(planted)] == ["base64url+0"]


@given(st.text(min_size=8, max_size=40).filter(lambda text: text.isprintable()), st.integers(0, 50), st.data())
@settings(max_examples=300)
def test_any_text_is_found_in_any_form(text: str, shift: int, data: st.DataObject) -> None:
    """Whatever its characters are."""
    forms = forms_of_text(text)
    form = data.draw(st.sampled_from(sorted(forms)))
    hits = Scanner([forms]).scan(b"\0" * shift + forms[form] + b"\0" * 9)
    assert Hit(0, form, shift) in hits


def test_a_key_is_found_raw_and_printed() -> None:
    """Raw bytes have forms, too."""
    key = bytes(range(200, 232))
    scanner = Scanner([forms_of_bytes(key)])
    assert [hit.form for hit in scanner.scan(b"abc" + key)] == ["plain"]
    assert [hit.form for hit in scanner.scan(b"abc" + key.hex().encode())] == ["hex"]


def test_forms_across_pieces_are_found_once() -> None:
    """However the data is cut."""
    scanner = Scanner([forms_of_text(CANARY), forms_of_text("another canary 4711")])
    data = b"-" * 100 + CANARY.encode() + b"-" * 50 + STORED["utf-16le"] + b"another canary 4711" + b"-" * 30
    whole = [(hit.canary, hit.form, hit.offset) for hit in scanner.scan(data)]
    assert len(whole) == 3
    for size in (1, 7, 8, 64, 100, 111, 1000):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert [(hit.canary, hit.form, hit.offset) for hit in scanner.scan_stream(pieces)] == whole


def test_many_canaries_with_one_beginning_are_told_apart() -> None:
    """A thousand of them, as the proof plants: each is found as itself and no other is."""
    texts = [f"canary-subject-{n:06d}-{secrets.token_hex(6)}" for n in range(1000)]
    scanner = Scanner([forms_of_text(text) for text in texts])
    data = b"\n".join(text.encode() for text in texts[::7]) + secrets.token_bytes(1 << 20)
    assert [hit.canary for hit in scanner.scan(data)] == list(range(0, 1000, 7))


def test_what_is_not_there_is_not_found() -> None:
    """Noise, and what begins like a canary."""
    scanner = Scanner([forms_of_text(CANARY)])
    assert scanner.scan(secrets.token_bytes(1 << 20)) == []
    assert scanner.scan(CANARY[:-1].encode() * 100) == []
    assert scanner.scan(b"") == Scanner([]).scan(b"something long enough") == []


def test_a_string_that_chance_would_find_is_refused() -> None:
    """Fewer than eight bytes tell nobody."""
    with pytest.raises(ValueError, match="8"):
        forms_of_text("jane")
