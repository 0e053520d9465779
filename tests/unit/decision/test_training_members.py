"""Lists of whom a model was trained on: small, searched row by row, and without those who were taken out."""

from hypothesis import given
from hypothesis import strategies as st

from services.decision.domain.training_members import FINGERPRINT_BYTES, fingerprint, merged, packed, unpacked, without

MEMBERS = st.sets(st.integers(0, 5_000).map(lambda n: f"member-{n}"), max_size=200)


@given(MEMBERS, MEMBERS, MEMBERS)
def test_a_list_holds_whom_it_was_told_and_not_who_left(first: set[str], more: set[str], gone: set[str]) -> None:
    """Packed, merged and trimmed by rows, the list is the set: 16 bytes each, ascending."""
    rows = packed(map(fingerprint, first))
    for byte, row in packed(map(fingerprint, more)).items():
        rows[byte] = merged(rows.get(byte, b""), row)
    leaving = [fingerprint(member) for member in gone]
    for byte in {each[0] for each in leaving} & rows.keys():
        left = without(rows[byte], leaving)
        rows[byte] = rows[byte] if left is None else left
    held = [each for _, row in sorted(rows.items()) for each in unpacked(row)]
    assert held == sorted(map(fingerprint, (first | more) - gone))
    assert sum(map(len, rows.values())) == FINGERPRINT_BYTES * len(held)


def test_who_was_not_in_the_list_changes_nothing() -> None:
    """None says so: no row is written, and no model marked."""
    row = packed([fingerprint("ann")])[fingerprint("ann")[0]]
    assert without(row, [fingerprint("bob")]) is None
    assert without(row, [fingerprint("ann")]) == b""
