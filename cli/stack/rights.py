"""Who owns a service's tables: a role of their own, so that the service cannot change what they are.

The service's role reads and writes rows. It cannot switch off the trigger that keeps its log append-only, nor alter,
rename, empty or drop a table, nor put beside them what a migration would run. What it still can: delete events as an
erasure does (`SET LOCAL comity.erasing`), and change rows of its other tables. That bounds what its SQL can do: code
that runs as a service beside the data folder can read the administrator's password there.

The owner logs in for the migrations of a start only, with a password that nobody keeps. Were it the administrator who
migrates in its name, what somebody left in a database to be run by that could make itself the administrator.
Where services migrate by themselves, as on Kubernetes, their role owns its tables.
"""

import secrets

import asyncpg

from cli.stack.external import shown
from cli.stack.provision import ADMIN_TIMEOUT_S, database_name, migrate_service, of_database, url_for
from services.chassis.errors import Kind, ServiceError

# Services that run lock several tables, too, and Postgres ends one of those that wait for each other.
HAND_OVER_TRIES = 5

# SQL here names roles, which cannot be parameters; the names are ours and need no quotes.
# MAINTAIN, which Postgres has since 17: who may not VACUUM is only warned, and the bytes of a destroyed key would stay.
ROWS = "GRANT SELECT, INSERT, UPDATE, DELETE, MAINTAIN ON ALL TABLES IN SCHEMA public TO {role}"
# The tables of an earlier release belong to the service's role until then; so does a database that was made just now.
BEFORE = f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{{owner}}') THEN CREATE ROLE {{owner}}; END IF;
    GRANT {{owner}}, {{role}} TO CURRENT_USER;
    IF EXISTS (SELECT FROM pg_database WHERE datname = '{{role}}' AND datdba <> '{{owner}}'::regrole)
    OR EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public' AND tableowner = '{{role}}') THEN
        REASSIGN OWNED BY {{role}} TO {{owner}};
        ALTER DATABASE {{role}} OWNER TO {{owner}};
        GRANT CONNECT ON DATABASE {{role}} TO {{role}};
        REVOKE CREATE ON SCHEMA public FROM PUBLIC, {{role}};
        {ROWS};
    END IF;
    ALTER ROLE {{owner}} LOGIN PASSWORD '{{password}}';
END $$
"""
NO_LOGIN = "ALTER ROLE {owner} NOLOGIN PASSWORD NULL"
# A service, of an earlier release too, begins with CREATE TABLE IF NOT EXISTS schema_migrations, which asks for the
# right to create even where there is one. It has that in a schema that only its own statements search.
AFTER = f"""
{ROWS};
REVOKE UPDATE ON public.events FROM {{role}};
REVOKE INSERT, UPDATE, DELETE ON public.schema_migrations FROM {{role}};
CREATE SCHEMA IF NOT EXISTS {{role}};
GRANT USAGE, CREATE ON SCHEMA {{role}} TO {{role}};
CREATE OR REPLACE VIEW {{role}}.schema_migrations AS TABLE public.schema_migrations;
GRANT SELECT ON {{role}}.schema_migrations TO {{role}}
"""


async def migrate_owned(admin_url: str, url: str, service: str) -> str:
    """Bring a service's database up to date as the role that owns it.

    Args:
        admin_url: of a role that may create roles.
        url: of the service's role, in its database.

    Returns:
        Why the service's role may own its tables all the same, and the remedy, one line; empty: it does not.

    Raises:
        ServiceError: FAILED_PRECONDITION when Postgres refuses, or a migration fails.
    """
    role, password = database_name(service), secrets.token_hex(32)
    names = {"role": role, "owner": f"{role}_owner", "password": password}
    admin = of_database(admin_url, role)
    try:
        if refusal := await _hand_over(admin, names):
            await migrate_service(url, service)
            return refusal
        try:
            await migrate_service(url_for(admin_url, names["owner"], password, role), service)
        finally:
            await _execute(admin, NO_LOGIN.format(**names))
        await _execute(admin, AFTER.format(**names))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "PROVISIONING_FAILED",
            f"the tables of {service} could not be given to a role of their own at {shown(admin_url)}: {error}",
        ) from error
    return ""


async def _hand_over(admin: str, names: dict[str, str]) -> str:
    """Give all that the service's role owns to the owner, in one transaction: a service that runs keeps its rights.

    Returns:
        Why that cannot be; empty: it is done, and the owner can log in.
    """
    for tries_left in reversed(range(HAND_OVER_TRIES)):
        try:
            await _execute(admin, BEFORE.format(**names))
            break
        except asyncpg.DeadlockDetectedError:
            if not tries_left:
                raise
        except (asyncpg.InsufficientPrivilegeError, asyncpg.PostgresSyntaxError) as error:
            return (
                "the services' roles may own their tables, and then can switch off what keeps their logs append-only; "
                "it takes Postgres 17 and an administrator who made these roles, or a superuser, to part them "
                f"({error.args[0]})"
            )
    return ""


async def _execute(admin: str, script: str) -> None:
    """Run a script as one transaction, as the administrator, in the service's database."""
    # Whoever owned the database may have set a path that leads to functions of theirs.
    connection = await asyncpg.connect(
        admin, timeout=10.0, command_timeout=ADMIN_TIMEOUT_S, server_settings={"search_path": "pg_catalog"}
    )
    try:
        await connection.execute(script)
    finally:
        await connection.close(timeout=5.0)
