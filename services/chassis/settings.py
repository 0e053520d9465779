"""What a service is told from outside: environment variables, and secrets as files.

One frozen class a service, derived from ServiceSettings with an `env_prefix` of its own. Where a secret lies is a
setting; what it says never is, so settings can be logged (`public`).
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.nats_files import NatsFiles

# A key that an HMAC or AES-256 can use in full.
SECRET_BYTES_MIN = 32
# A secret is a key, not a document: a wrong path must not be read into memory whole.
SECRET_BYTES_MAX = 4096


class ServiceSettings(BaseSettings):
    """What every service is told; a service adds fields and sets `env_prefix="COMITY_<SERVICE>_"`.

    Args:
        listen: host:port of the gRPC server; port 0 takes a free one.
        public_listen: host:port of a second server with the methods that backends may call, and no others; empty: none.
        reflection: tell callers of `listen` which methods and messages there are, for generic clients such as grpcurl.
        database_url: of the service's own Postgres database.
        nats_url: of JetStream; several servers of one cluster with commas between them.
        nats_ca_file: PEM file of the authorities that NATS' certificate is checked with; none: the system's.
        nats_cert_file: PEM file of the certificate that NATS is shown, where it verifies its clients.
        nats_key_file: PEM file of that certificate's key.
        nats_credentials_file: `.creds` file with the user's JWT and seed, in place of a password in nats_url.
        traces_dir: folder for OTLP-JSON lines when there is no otlp_endpoint; empty: no spans are kept.
        otlp_endpoint: host:port that takes OTLP over gRPC.
        trace_ratio: share of calls that are sampled when their caller did not decide.
        instance: name of this process among those of its service, as spans give it (the pod's); empty: a random one.
        namespace: what tells this Comity's services from others of the same name, as spans give it.
        environment: where it is deployed, as spans give it ("production"); empty: spans do not say.
        version: of the service that runs, as spans give it; empty: spans do not say.
        metrics_port: of the Prometheus endpoint; 0: none.
        metrics_host: address the Prometheus endpoint binds to.
        drain_s: between "not serving" and the last new call, so that balancers can look away.
        stop_grace_s: for calls in flight to end, after that.
        reuse_port: several processes share the port; off, so that a second start fails and takes no calls away.
        concurrent_calls_max: above it a call is refused at once with RESOURCE_EXHAUSTED, but for health.
    """

    model_config = SettingsConfigDict(env_prefix="COMITY_", frozen=True, extra="ignore", hide_input_in_errors=True)

    listen: str = "127.0.0.1:0"
    public_listen: str = ""
    reflection: bool = False
    database_url: SecretStr
    nats_url: str
    nats_ca_file: Path | None = None
    nats_cert_file: Path | None = None
    nats_key_file: Path | None = None
    nats_credentials_file: Path | None = None
    traces_dir: str = ""
    otlp_endpoint: str = ""
    trace_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    instance: str = ""
    namespace: str = "comity"
    environment: str = ""
    version: str = ""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    # Together they leave five of the thirty seconds that a stop may take for closing what is open.
    drain_s: float = Field(default=5.0, ge=0.0, le=10.0)
    stop_grace_s: float = Field(default=10.0, ge=0.0, le=15.0)
    reuse_port: bool = False
    concurrent_calls_max: int = Field(default=2000, ge=1)

    def public(self) -> dict[str, Any]:
        """The settings as a log may hold them: secrets masked, no user or password in URLs."""
        return {name: _masked(value) for name, value in self.model_dump().items()}

    def secret_files(self) -> dict[str, Path]:
        """The files that must hold a key of ours: every field whose name ends in `_file`, but for those of NATS."""
        return {
            name: value
            for name, value in self
            if name.endswith("_file") and not name.startswith("nats_") and isinstance(value, Path) and value.parts
        }

    @property
    def nats_files(self) -> NatsFiles:
        """What NATS is asked with besides its address; an empty path is none."""
        paths = (self.nats_ca_file, self.nats_cert_file, self.nats_key_file, self.nats_credentials_file)
        return NatsFiles(*(path if path is not None and path.parts else None for path in paths))


def unknown_settings(settings_class: type[ServiceSettings], variables: Iterable[str]) -> dict[str, str]:
    """Variables with the service's prefix that are no setting of it, each with the one that is probably meant."""
    prefix = str(settings_class.model_config.get("env_prefix", ""))
    return unknown_among(variables, prefix, [f"{prefix}{name}".upper() for name in settings_class.model_fields])


def unknown_among(variables: Iterable[str], prefix: str, known: Sequence[str]) -> dict[str, str]:
    """Variables with the prefix that are not known, each with the known one that is probably meant, or with nothing."""
    ends = {name.removeprefix(prefix): name for name in known}  # the prefix alone would make any two look alike
    unknown = (name for name in variables if name.upper().startswith(prefix) and name.upper() not in known)
    close = {name: get_close_matches(name.upper().removeprefix(prefix), ends, n=1) for name in sorted(unknown)}
    return {name: ends[found[0]] if found else "" for name, found in close.items()}


def read_secret(path: Path) -> bytes:
    """The secret in a file, without the newline that editors leave at its end.

    Raises:
        ValueError: the file cannot be read, or holds fewer than 32 or more than 4,096 bytes.
    """
    try:
        with path.open("rb") as file:
            secret = file.read(SECRET_BYTES_MAX + 1).rstrip(b"\r\n")
    except OSError as error:
        raise ValueError(f"{path}: the secret cannot be read ({error.strerror})") from error
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ValueError(
            f"{path}: the secret has {len(secret)} bytes; {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} are allowed"
        )
    return secret


def addresses_in(url: str) -> list[str]:
    """Each server of a URL that names several: `nats://one:4222,nats://two:4222`."""
    return re.split(r"\s*,\s*(?=[a-z]+://)", url.strip())


def _masked(value: Any) -> Any:
    """The value without what only its owner may know."""
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) and "@" in value and "://" in value:
        return ",".join(map(_without_user, addresses_in(value)))
    return value


def _without_user(url: str) -> str:
    # Not read as a URL: that of a password which is not percent-encoded ends in the middle of it.
    scheme, _, rest = url.partition("://")
    return f"{scheme}://***@{rest.rpartition('@')[2]}" if "@" in rest else url
