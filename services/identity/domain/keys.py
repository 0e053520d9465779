"""Data keys: one a member, 32 bytes, destroyed with the member and never made again."""

from dataclasses import dataclass, field

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class DataKey:
    """A member's data key; without a key_id there is none.

    Args:
        destroyed: the member was erased: there is no key and there will be none.
    """

    member_id: str
    key_id: str = ""
    key: bytes = field(default=b"", repr=False)
    destroyed: bool = False
