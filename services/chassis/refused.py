"""Why a server turned us away: a wrong secret, certificate or right, and the setting that it comes from.

The sentences name settings without their prefix (`NATS_URL` is COMITY_<SERVICE>_NATS_URL, of a stack COMITY_NATS_URL),
and never a value. What is not recognized here is an outage.
"""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg
import nats
from redis.exceptions import AuthenticationError, NoPermissionError

CHAIN_MAX = 6


@dataclass(frozen=True, slots=True)
class _Server:
    """A server, and the settings that say what it is asked with.

    Args:
        url: has user and password.
        ca: names the file of authorities that its certificate is checked with.
        certificate: names the files that we show it.
    """

    name: str
    url: str
    ca: str
    certificate: str


_POSTGRES = _Server("Postgres", "DATABASE_URL", "sslrootcert in DATABASE_URL", "sslcert and sslkey in DATABASE_URL")
_NATS = _Server("NATS", "NATS_URL", "NATS_CA_FILE", "NATS_CERT_FILE and NATS_KEY_FILE")
_REDIS = _Server("Redis", "REDIS_URL", "ssl_ca_certs in REDIS_URL", "ssl_certfile and ssl_keyfile in REDIS_URL")

# What the other side says of our certificate, as OpenSSL names it.
_OUR_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")


def by_postgres(error: BaseException) -> str | None:
    """What Postgres has against us; None where it is only away."""
    match error:
        case asyncpg.InvalidPasswordError():
            return "Postgres refuses the role or password in DATABASE_URL: correct it."
        case asyncpg.InvalidAuthorizationSpecificationError():
            return "Postgres lets this role not in from here: correct DATABASE_URL and its sslcert, or pg_hba.conf."
        case asyncpg.InvalidCatalogNameError():
            return "Postgres has no database of the name in DATABASE_URL: create it, or correct the name."
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return _speaks_no_tls(_POSTGRES)
    return _by_tls(_POSTGRES, error)


def by_redis(error: BaseException) -> str | None:
    """What Redis or Valkey has against us; None where it is only away."""
    for one in _chain(error):
        if isinstance(one, AuthenticationError):
            return "Redis refuses the user or password in REDIS_URL: correct it."
        if isinstance(one, NoPermissionError):
            return "The user in REDIS_URL may not do that: allow `~features:*` and `+@read +@write +@scripting`."
    return _by_tls(_REDIS, error)


def by_nats(error: BaseException, *, with_credentials: bool) -> str | None:
    """What NATS has against us; None where it is only away.

    Args:
        with_credentials: NATS_CREDENTIALS_FILE says who we are, and not NATS_URL.
    """
    text = str(error).lower() if isinstance(error, nats.errors.Error) else ""
    if isinstance(error, nats.errors.SecureConnWantedError):
        return _speaks_no_tls(_NATS)
    if "permissions violation" in text:
        return (
            "NATS does not allow the user what it does: let it publish and subscribe to `ev.>`, `$JS.>` and `_INBOX.>`."
        )
    if any(words in text for words in ("authorization violation", "authentication", "expired", "revoked")):
        named = "credentials in NATS_CREDENTIALS_FILE" if with_credentials else "user or password in NATS_URL"
        return f"NATS refuses the {named}: correct it."
    return _by_tls(_NATS, error)


def _by_tls(server: _Server, error: BaseException) -> str | None:
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            why = one.verify_message.rstrip(".")
            return f"The certificate of {server.name} is not trusted ({why}): correct {server.ca} or the certificate."
        if isinstance(one, ssl.SSLError):
            reason = one.reason or ""
            if "ALERT" in reason and any(word in reason for word in _OUR_CERTIFICATE):
                return f"{server.name} refuses our certificate or wants one ({reason}): correct {server.certificate}."
            if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return _speaks_no_tls(server)
        if isinstance(one, FileNotFoundError | PermissionError):
            return f"A file that {server.ca} or {server.certificate} names cannot be read: correct the path."
    return None


def _speaks_no_tls(server: _Server) -> str:
    return f"{server.name} does not speak TLS there: correct {server.url}, or switch TLS on."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from: libraries wrap what TLS says."""
    for _ in range(CHAIN_MAX):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
