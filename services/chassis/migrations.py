"""Brings a database's tables up to date: plain SQL files in dbmate's format, each applied once.

Files are immutable once applied: what ran is kept as a checksum, and a changed file is refused.
"""

from pathlib import Path


async def migrate(url: str, folder: Path) -> list[str]:
    """Apply the folder's files that have not been applied, in order of name; their names.

    The chassis' own folder comes first for every service: `migrate(url, CHASSIS)`, then the service's.

    Args:
        url: of the role that is to own the tables.
        folder: of `NNNN_name.sql` files with a `-- migrate:up` line.

    Raises:
        MigrationError: a file was changed after it was applied, or is not in the format.
    """
    raise NotImplementedError


# Tables that every service has.
CHASSIS = Path(__file__).parent / "migrations"


class MigrationError(Exception):
    """The files and the database do not fit together; says which file and how to mend it."""
