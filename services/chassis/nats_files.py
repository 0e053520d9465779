"""What NATS is asked with besides its address: authorities, our certificate, and credentials (JWT and nkey)."""

import base64
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SECTION = re.compile(r"-+BEGIN ([A-Z ]+)-+\s+(\S+)\s+-+END ")
# An nkey is base32: two bytes that say what it is, the seed, two of a checksum.
_SEED = slice(2, 34)


@dataclass(frozen=True, slots=True)
class NatsFiles:
    """Paths; None: not given.

    Args:
        ca: authorities that the servers' certificates are checked with, PEM; None: the system's.
        certificate: ours, PEM, for servers that verify clients; with its key.
        credentials: a `.creds` file: a user's JWT and seed.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    credentials: Path | None = None

    def problems(self) -> dict[str, str]:
        """What is wrong, by the name of the setting: what cannot be read, or is none of its kind; never its content."""
        found = {}
        if (self.certificate is None) != (self.key is None):
            found["nats_key_file"] = "certificate and key belong together: give both, or neither"
        looks = (
            ("nats_ca_file", self.ca, self._authorities),
            ("nats_cert_file", self.certificate, self._tls),
            ("nats_credentials_file", self.credentials, self._user),
        )
        for name, path, look in looks:
            if path is None or (look == self._tls and found):
                continue
            try:
                look()
            except ssl.SSLError:
                found[name] = "is not PEM, or does not belong to its key"
            except OSError as error:
                found[name] = f"cannot be read ({error.strerror})"
            except ValueError as error:
                found[name] = str(error)
        return found

    def options(self) -> dict[str, Any]:
        """Arguments of a NATS client's connect.

        Raises:
            OSError, ValueError: see problems().
        """
        options: dict[str, Any] = {}
        if self.ca is not None or self.certificate is not None:
            options["tls"] = self._tls()
        if self.credentials is not None:
            # Read at each connection: credentials are renewed by replacing the file.
            options["user_jwt_cb"] = lambda: bytearray(self._user()[0].encode())
            options["signature_cb"] = lambda nonce: base64.b64encode(self._user()[1].sign(nonce.encode()))
        return options

    def _authorities(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def _tls(self) -> ssl.SSLContext:
        context = self._authorities()
        if self.certificate is not None and self.key is not None:
            # With a password, or it would be asked for at the terminal: keys that need one are refused.
            context.load_cert_chain(self.certificate, self.key, password="")
        return context

    def _user(self) -> tuple[str, Ed25519PrivateKey]:
        """The JWT, and the key that signs the server's nonce.

        nats-py needs another library for these files; what it would do is this.
        """
        assert self.credentials is not None, "asked where there is a file"
        sections = dict(_SECTION.findall(self.credentials.read_text()))
        try:
            seed = base64.b32decode(_padded(sections["USER NKEY SEED"]))
            return sections["NATS USER JWT"], Ed25519PrivateKey.from_private_bytes(seed[_SEED])
        except (KeyError, ValueError):
            raise ValueError("holds no user's JWT and nkey seed, as `nsc generate creds` writes them") from None


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 8)
