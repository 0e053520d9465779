"""Each service's own database and role, and the tables in it."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

import services
from cli.stack.external import shown
from services.chassis.errors import Kind, ServiceError
from services.chassis.migrations import CHASSIS, MigrationError, migrate

SERVICES = ("identity", "consent", "features", "decision", "feedback")
ADMIN_TIMEOUT_S = 60.0

# SQL here names roles and databases, which cannot be parameters. The names are ours, and quoted all the same.
ROLE_EXISTS_SQL = "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1"
DATABASE_EXISTS_SQL = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1"
QUOTE_SQL = "SELECT pg_catalog.quote_ident($1), pg_catalog.quote_literal($2)"


def database_name(service: str) -> str:
    """Name of a service's database, and of the role that owns it."""
    return f"comity_{service}"


async def provision(admin_url: str, passwords: Mapping[str, str]) -> dict[str, str]:
    """Create every service's role and database that is not there; their addresses by service.

    Args:
        admin_url: of a role that may create roles and databases.
        passwords: of each service's role.

    Raises:
        ServiceError: FAILED_PRECONDITION when the role may not, Postgres does not answer, or the roles that are there
            are another stack's; nothing was changed then.
    """
    urls = {service: url_for(admin_url, database_name(service), password) for service, password in passwords.items()}
    try:
        connection = await asyncpg.connect(admin_url, timeout=10.0, command_timeout=ADMIN_TIMEOUT_S)
        try:
            await _require_own(connection, admin_url, urls)
            for service, password in passwords.items():
                name = database_name(service)
                await ensure_role(connection, name, password)
                await ensure_database(connection, name, owner=name)
        finally:
            await connection.close(timeout=5.0)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "PROVISIONING_FAILED",
            f"roles and databases could not be made at {shown(admin_url)}: {error}; "
            "its role must be allowed to log in and to create both",
        ) from error
    return urls


async def _require_own(
    connection: "asyncpg.Connection[asyncpg.Record]", admin_url: str, urls: Mapping[str, str]
) -> None:
    """Returns when every role that is there lets this stack in: with another password it is another stack's.

    Raises:
        ServiceError: FAILED_PRECONDITION (DATABASES_OF_ANOTHER_STACK).
    """
    foreign = [
        database_name(service)
        for service, url in urls.items()
        if await connection.fetchval(ROLE_EXISTS_SQL, database_name(service)) and not await _lets_in(url)
    ]
    if foreign:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "DATABASES_OF_ANOTHER_STACK",
            f"{', '.join(foreign)} at {shown(admin_url)} have other passwords than this stack's secrets/ folder: they "
            "are another stack's, and nothing was changed there. Give this stack a Postgres of its own, or take theirs "
            "up with the secrets/ folder that they were made with",
        )


async def _lets_in(url: str) -> bool:
    """Whether the role's password is the one of the address; its database need not be there yet."""
    try:
        connection = await asyncpg.connect(url, timeout=10.0)
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    except (asyncpg.InvalidCatalogNameError, asyncpg.InsufficientPrivilegeError):
        return True  # an earlier start made the role and came no further
    await connection.close(timeout=5.0)
    return True


async def ensure_role(connection: "asyncpg.Connection[asyncpg.Record]", role: str, password: str) -> None:
    """A role that may log in and nothing else, made with this password; one that is there stays as it is."""
    name, secret = await connection.fetchrow(QUOTE_SQL, role, password) or ("", "")
    if not await connection.fetchval(ROLE_EXISTS_SQL, role):
        rights = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION"
        await connection.execute(f"CREATE ROLE {name} {rights} PASSWORD {secret}")


async def ensure_database(
    connection: "asyncpg.Connection[asyncpg.Record]", database: str, *, owner: str, template: str = "template0"
) -> None:
    """A database that only its owner (and the administrator) can connect to."""
    name, _ = await connection.fetchrow(QUOTE_SQL, database, "") or ("", "")
    role, _ = await connection.fetchrow(QUOTE_SQL, owner, "") or ("", "")
    if not await connection.fetchval(DATABASE_EXISTS_SQL, database):
        # An administrator that is no superuser must be a member of the owner to give it the database.
        await connection.execute(f"GRANT {role} TO CURRENT_USER")
        await connection.execute(f"CREATE DATABASE {name} OWNER {role} TEMPLATE {template}")
    await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")


async def migrate_service(url: str, service: str) -> list[str]:
    """Bring a service's database up to date; the names of the files that were applied."""
    own = Path(services.__file__).parent / service / "migrations"
    try:
        return [*await migrate(url, CHASSIS), *await migrate(url, own)]
    except MigrationError as error:
        raise ServiceError(Kind.FAILED_PRECONDITION, "MIGRATION_FAILED", f"{service}: {error}") from error


def of_database(url: str, database: str) -> str:
    """The address with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def url_for(admin_url: str, role: str, password: str, database: str | None = None) -> str:
    """The administrator's address with another role, and the database of the same name."""
    parts = urlsplit(admin_url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(role, safe='')}:{quote(password, safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{database or role}"))
