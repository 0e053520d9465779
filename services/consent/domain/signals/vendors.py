"""Sets of vendors as consent strings hold them: a bit field up to the highest, or ranges."""

from dataclasses import dataclass

from services.consent.domain.signals.bits import BitReader
from services.consent.domain.signals.errors import Code

ID_MAX = 0xFFFF

# First and last vendor of each range, both included.
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Vendors:
    """A set of vendors, and how it was written.

    Args:
        max_id: that the string declares; no vendor is above it.
        ranges: None where the string has a bit field.
        bits: that field: bit *n* is vendor *n*.
    """

    max_id: int
    ranges: Ranges | None = None
    bits: int = 0

    def __contains__(self, vendor_id: int) -> bool:
        if self.ranges is None:
            return bool(self.bits >> vendor_id & 1)
        return covers(self.ranges, vendor_id)

    @property
    def ids(self) -> tuple[int, ...]:
        """The vendors, ascending."""
        if self.ranges is None:
            return tuple(number for number, bit in enumerate(bin(self.bits)[:1:-1]) if bit == "1")
        return ids_of(self.ranges)


def covers(ranges: Ranges, vendor_id: int) -> bool:
    """Whether the vendor is in one of the ranges."""
    return any(first <= vendor_id <= last for first, last in ranges)


def ids_of(ranges: Ranges) -> tuple[int, ...]:
    """All vendors of the ranges, ascending, each once."""
    return tuple(sorted({number for first, last in ranges for number in range(first, last + 1)}))


def read_vendors(reader: BitReader) -> Vendors:
    """MaxVendorId, IsRangeEncoding, and a bit field or ranges.

    Source: TCF "The Core String", Vendor Consent Section; GPP data type OptimizedIntRange.
    """
    max_id = reader.integer(16)
    if reader.boolean():
        return Vendors(max_id, read_ranges(reader, max_id))
    return Vendors(max_id, bits=reader.bit_set(max_id))


def read_ranges(reader: BitReader, max_id: int) -> Ranges:
    """The ranges of a set of vendors.

    They must ascend without overlap, and a range of one vendor must be written as that vendor: a set has then few
    spellings, and none that says a thing twice.

    Source: TCF "The Core String", Vendor Consent Section.
    """
    ranges = read_any_ranges(reader)
    previous = 0
    for first, last in ranges:
        if first <= previous or last > max_id:
            raise reader.error(Code.RANGE_INVALID, "a vendor range is out of order, overlaps or exceeds the maximum")
        previous = last
    return ranges


def read_any_ranges(reader: BitReader) -> Ranges:
    """NumEntries and as many range entries of 16-bit identifiers, in any order.

    Source: TCF "The Core String", RangeEntry; GPP data type Range (Int), whose "items may not be in sorted order".
    """
    ranges = []
    for _ in range(reader.integer(12)):
        is_range = reader.boolean()
        first = reader.integer(16)
        last = reader.integer(16) if is_range else first
        if first == 0 or (is_range and last <= first):
            raise reader.error(Code.RANGE_INVALID, "a vendor range begins at 0, or ends before its second vendor")
        ranges.append((first, last))
    return tuple(ranges)


def read_fibonacci_vendors(reader: BitReader) -> Vendors:
    """A maximum, a flag, and a bit field or Fibonacci-coded ranges.

    The specification's OptimizedRange has the maximum only before a bit field; this is what IAB's encoders write, and
    what their published strings hold.

    Source: GPP data type OptimizedRange.
    """
    max_id = reader.integer(16)
    if not reader.boolean():
        return Vendors(max_id, bits=reader.bit_set(max_id))
    ranges = read_fibonacci_ranges(reader)
    if ranges and ranges[-1][1] > max_id:
        raise reader.error(Code.RANGE_INVALID, "a vendor range exceeds the maximum")
    return Vendors(max_id, ranges)


def read_fibonacci_ranges(reader: BitReader) -> Ranges:
    """A count and as many range entries, each a distance from the last identifier; so they ascend by themselves.

    Source: GPP data type Range (Fibonacci).
    """
    ranges = []
    previous = 0
    for _ in range(reader.integer(12)):
        is_range = reader.boolean()
        first = previous + reader.fibonacci()
        last = first + reader.fibonacci() if is_range else first
        if last > ID_MAX:
            raise reader.error(Code.RANGE_INVALID, "a range holds what is no identifier")
        ranges.append((first, last))
        previous = last
    return tuple(ranges)
