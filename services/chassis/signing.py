"""Ed25519 keys of the site, one for each use, derived from its secrets."""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def signing_key(use: str, secret: bytes) -> Ed25519PrivateKey:
    """The key for this use; another secret is another key.

    Args:
        use: such as "receipts"; keys of different uses tell nothing of each other.
        secret: at least 32 random bytes.
    """
    # A secret file holds text of any length; the key is 32 bytes of it that serve nothing else.
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"comity.{use}|".encode() + secret).digest())


def public_hex(use: str, secret: bytes) -> str:
    """The public half of the key for this use: 64 hex digits, as public_keys_of reads them."""
    return signing_key(use, secret).public_key().public_bytes_raw().hex()


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether the signature is this key's, over exactly this message.

    Args:
        public_key: 32 bytes.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def public_keys_of(content: bytes) -> list[bytes]:
    """The public keys in a file: 64 hex digits a line.

    Raises:
        ValueError: a line is no key.
    """
    keys = [bytes.fromhex(line) for line in content.decode("ascii").split()]
    if not all(len(key) == 32 for key in keys):
        raise ValueError("a public key has 64 hex digits; take what `comity models key` prints")
    return keys
