"""What a visitor's browser sends, made fit to travel: such a value never fails a call, whoever reads it judges it.

The fields are marked `from_visitor` (comity.common.v1.limits), which leaves them unchecked. A service that passes one
on bounds it here, because a value that costs a batch its call would cost others theirs.
"""

# No id, hash or token that a program gives somebody is longer.
IDENTITY_CHARACTERS_MAX = 256
# One more than what a consent string may have, so that what is too long is still found to be.
SIGNAL_CHARACTERS_MAX = 8193
FACT_CHARACTERS_MAX = 1024


def identifies(value: str) -> bool:
    """Whether the value can be an identity at all: neither empty, nor longer than any is, nor with a NUL."""
    return 0 < len(value) <= IDENTITY_CHARACTERS_MAX and "\0" not in value


def bounded(text: str, characters_max: int) -> str:
    """The text, at most so long, with a replacement character for each NUL, which Postgres cannot store."""
    if len(text) > characters_max:
        text = text[:characters_max]
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text
