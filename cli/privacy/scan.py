"""Finds strings in raw bytes, in every form that software stores or prints them; the core of `comity privacy scan`.

A thousand strings in a dozen forms are too many for an alternation of `re`, and too much for a `bytes.find` of each.
So each form is known by eight of its bytes, those that fewest other forms share: a bitmap says which eight bytes of the
data may be one of them, for all places at once (numpy), and what is left is compared in full. A gigabyte takes some
ten seconds however many strings there are.
"""

import base64
import html
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

WINDOW_BYTES = 8
# With ten thousand forms one place in four hundred is a false candidate; four times the bits would leave the cache.
BITS = 22
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - BITS)

Forms = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Hit:
    """A string in a form, at a place of the data; says which string by its number, and never shows it."""

    canary: int
    form: str
    offset: int


def forms_of_text(text: str) -> dict[str, bytes]:
    """Every form of a text that is looked for, by name; forms that are the same bytes are there once.

    A form that is too short to be told from chance is left out, as three letters of Japanese in UTF-16 are.

    Raises:
        ValueError: the text is too short for that: it would be found by accident, or cannot be.
    """
    plain = text.encode()
    found = {
        "plain": plain,
        "utf-16le": text.encode("utf-16-le"),
        "utf-16be": text.encode("utf-16-be"),
        "percent": quote(text, safe="").encode(),
        "percent-lower": _lower_percent(quote(text, safe="")).encode(),
        # As it lies between the quotes; é can be one character, or two.
        "json": json.dumps(text)[1:-1].encode(),
        "json-utf8": json.dumps(text, ensure_ascii=False)[1:-1].encode(),
        "html": html.escape(text).encode(),
        "composed": unicodedata.normalize("NFC", text).encode(),
        "decomposed": unicodedata.normalize("NFD", text).encode(),
        **_forms_of_bytes(plain),
    }
    return _checked(found)


def forms_of_bytes(data: bytes) -> dict[str, bytes]:
    """The same for raw bytes, such as a key.

    Raises:
        ValueError: see forms_of_text.
    """
    return _checked({"plain": data, **_forms_of_bytes(data)})


def _forms_of_bytes(data: bytes) -> dict[str, bytes]:
    forms = {"hex": data.hex().encode(), "hex-upper": data.hex().upper().encode()}
    for offset in range(3):
        text = _base64_at(data, offset)
        forms[f"base64+{offset}"] = text
        forms[f"base64url+{offset}"] = text.translate(bytes.maketrans(b"+/", b"-_"))
    return forms


def _base64_at(data: bytes, offset: int) -> bytes:
    """What base64 makes of the data wherever *offset* bytes stand before it, without what its neighbors decide."""
    encoded = base64.b64encode(bytes(offset) + data)
    # A character holds six bits: those of the data alone lie between these.
    first, last = -(-offset * 8 // 6), (offset + len(data)) * 8 // 6
    return encoded[first:last]


def _lower_percent(text: str) -> str:
    parts = text.split("%")
    return parts[0] + "".join("%" + part[:2].lower() + part[2:] for part in parts[1:])


def _checked(forms: dict[str, bytes]) -> dict[str, bytes]:
    if len(forms["plain"]) < WINDOW_BYTES:
        raise ValueError(f"has {len(forms['plain'])} bytes; at least {WINDOW_BYTES} are needed to tell it from chance")
    distinct: dict[bytes, str] = {}
    for name, form in forms.items():
        if len(form) >= WINDOW_BYTES:
            distinct.setdefault(form, name)
    return {name: form for form, name in distinct.items()}


class Scanner:
    """Looks for forms of strings.

    Args:
        canaries: the forms of each string, by name; its place is its number.
    """

    def __init__(self, canaries: Sequence[Forms]) -> None:
        self._table = np.zeros(1 << BITS, dtype=np.bool_)
        # Eight bytes → (string, form's name, form, where in the form they stand).
        self._by_window: dict[int, list[tuple[int, str, bytes, int]]] = defaultdict(list)
        all_forms = [(number, name, form) for number, forms in enumerate(canaries) for name, form in forms.items()]
        self._lengths = {(number, name): len(form) for number, name, form in all_forms}
        shared = _window_counts(form for _, _, form in all_forms)
        self.longest = max((len(form) for _, _, form in all_forms), default=1)
        for number, name, form in all_forms:
            windows = _windows(form)
            _, at = min((shared[window], place) for place, window in enumerate(windows))
            self._by_window[windows[at]].append((number, name, form, at))
        keys = np.fromiter(self._by_window, dtype=np.uint64, count=len(self._by_window))
        self._keys = np.sort(keys)
        self._table[_hash(keys)] = True

    def scan(self, data: bytes | memoryview) -> list[Hit]:
        """Every hit in the data, in order of place."""
        view = memoryview(data)
        if len(view) < WINDOW_BYTES or not len(self._keys):
            return []
        hits = [hit for place in self._candidates(view) for hit in self._compare(view, int(place))]
        return sorted(hits, key=lambda hit: (hit.offset, hit.canary, hit.form))

    def scan_stream(self, chunks: Iterable[bytes]) -> Iterator[Hit]:
        """The same over data that comes in pieces, each hit once, also where it lies across two pieces."""
        # What is carried over is too short to hold a whole form, so nothing in it alone was found before.
        carried, start = b"", 0
        for chunk in chunks:
            data = carried + chunk
            for hit in self.scan(data):
                if hit.offset + self._lengths[hit.canary, hit.form] > len(carried):
                    yield Hit(hit.canary, hit.form, start + hit.offset)
            keep = min(len(data), self.longest - 1)
            start += len(data) - keep
            carried = data[len(data) - keep :]

    def _candidates(self, view: memoryview) -> NDArray[np.int64]:
        """Places where the eight bytes are those of some form."""
        found: list[NDArray[np.int64]] = []
        for shift in range(min(WINDOW_BYTES, len(view) - WINDOW_BYTES + 1)):
            count = (len(view) - shift) // WINDOW_BYTES
            words = np.frombuffer(view, dtype="<u8", count=count, offset=shift)
            likely = np.flatnonzero(self._table[_hash(words)])
            if len(likely):
                chosen = words[likely]
                known = self._keys[np.minimum(np.searchsorted(self._keys, chosen), len(self._keys) - 1)] == chosen
                found.append(likely[known] * WINDOW_BYTES + shift)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _compare(self, view: memoryview, place: int) -> Iterator[Hit]:
        window = int.from_bytes(view[place : place + WINDOW_BYTES], "little")
        for number, name, form, at in self._by_window[window]:
            begin = place - at
            if begin >= 0 and view[begin : begin + len(form)] == form:
                yield Hit(number, name, begin)


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The upper bits of a product, which every bit of the word has moved."""
    return (words * MULTIPLIER) >> _SHIFT


def _windows(form: bytes) -> list[int]:
    return [int.from_bytes(form[at : at + WINDOW_BYTES], "little") for at in range(len(form) - WINDOW_BYTES + 1)]


def _window_counts(forms: Iterable[bytes]) -> dict[int, int]:
    counts: dict[int, int] = defaultdict(int)
    for form in forms:
        for window in _windows(form):
            counts[window] += 1
    return counts
