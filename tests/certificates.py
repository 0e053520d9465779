"""Certificates, keys and NATS credentials for tests, made anew each time."""

import base64
import binascii
import datetime
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

# Of nkeys: what a key belongs to, as the first letter of its text shows it (O, A, U, and S for a seed).
OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3
UNLIMITED = {"subs": -1, "data": -1, "payload": -1}
STORAGE = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files and as what signs others."""

    path: Path
    key: Path
    content: x509.Certificate
    private: ec.EllipticCurvePrivateKey


def certificate(folder: Path, name: str, issuer: Certificate | None = None) -> Certificate:
    """A certificate for this machine by *issuer*; without one an authority of its own."""
    private, today = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    content = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.content.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(private if issuer is None else issuer.private, hashes.SHA256())
    )
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key", content, private)
    made.path.write_bytes(content.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


class Nkey:
    """A key of NATS' decentralized authentication.

    Args:
        kind: OPERATOR, ACCOUNT or USER.
    """

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._private = Ed25519PrivateKey.generate()

    @property
    def public(self) -> str:
        """Its name."""
        return _text(bytes([self._kind]) + self._private.public_key().public_bytes_raw())

    @property
    def seed(self) -> str:
        """Itself."""
        prefix = bytes([SEED | (self._kind >> 5), (self._kind & 31) << 3])
        return _text(prefix + self._private.private_bytes_raw())

    def jwt(self, subject: "Nkey", name: str, claims: Mapping[str, Any]) -> str:
        """What this key says about the subject."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {"jti": name, "iat": 1, "iss": self.public, "name": name, "sub": subject.public, "nats": claims}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, body))
        return f"{signed}.{_base64(self._private.sign(signed.encode()))}"


@dataclass(frozen=True)
class NatsOperator:
    """A NATS operator with one account that has JetStream.

    Args:
        config: lines for the server's configuration, in place of its users.
    """

    config: str
    account: Nkey

    def credentials(self, path: Path, *, signed_by: Nkey | None = None) -> Path:
        """A `.creds` file of a new user of the account, or of one that *signed_by* made up."""
        user = Nkey(USER)
        jwt = (signed_by or self.account).jwt(user, "user", {**UNLIMITED, "type": "user", "version": 2})
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        return path


def nats_operator() -> NatsOperator:
    """A new operator."""
    operator, system, account = Nkey(OPERATOR), Nkey(ACCOUNT), Nkey(ACCOUNT)
    limits = {**UNLIMITED, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    jwts = {
        system.public: operator.jwt(system, "system", {"limits": limits, "type": "account", "version": 2}),
        account.public: operator.jwt(
            account, "own", {"limits": {**limits, **STORAGE}, "type": "account", "version": 2}
        ),
    }
    itself = operator.jwt(operator, "operator", {"type": "operator", "version": 2})
    preloaded = "\n".join(f"  {key}: {jwt}" for key, jwt in jwts.items())
    config = (
        f"operator: {itself}\nsystem_account: {system.public}\nresolver: MEMORY\nresolver_preload {{\n{preloaded}\n}}\n"
    )
    return NatsOperator(config, account)


def _text(raw: bytes) -> str:
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
