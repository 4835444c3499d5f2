"""Signatures on what a controller sends to hosts (Ed25519), over the exact bytes and the queue that they are for.

The bytes are the whole envelope (type, body and context), and a queue belongs to one host, so a signature is
worth nothing on another message or at another host. The same message sent again bears the same signature: that a
message may come twice is settled by its epoch and order number, not here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from whimbrel.domain.errors import SettingsError
from whimbrel.ops import keyfile

PURPOSE = b"whimbrel order 1"
"""Stands before what is signed, so that the key's signatures for anything else would not pass here."""
KEYS_MAX = 8


class Signer:
    """Signs with the controller's private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read the private key (PEM), made at the first use; SettingsError if that cannot be."""
        try:
            if not path.exists():
                keyfile.make(path, _new_key())
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise SettingsError(f"Cannot read or make the order key {path}: {error.strerror}.") from error
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{path} holds no private key in PEM without a password: {error}.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{path} holds a key of another kind than Ed25519; remove the file to have one made.")
        return cls(key)

    @property
    def public_key(self) -> str:
        """The public key as hosts' settings name it: 32 bytes in base64."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, queue: str, data: bytes) -> str:
        """Return the signature of `data` for this queue, in base64."""
        return base64.b64encode(self._key.sign(_signed(queue, data))).decode()


class Verifier:
    """Knows the controllers' public keys; several are good at once, so that a key can be changed without a gap."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not 1 <= len(keys) <= KEYS_MAX:
            raise SettingsError(
                f"[agent] controller_keys needs 1 to {KEYS_MAX} public keys; on a controller, "
                "`whimbrel host controller-key` prints its own."
            )
        self._keys = [_public_key(key) for key in keys]

    def passes(self, queue: str, data: bytes, signature: str) -> bool:
        """Return whether one of the keys made this signature of `data` for this queue."""
        try:
            raw = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            return False
        return any(_verifies(key, raw, _signed(queue, data)) for key in self._keys)


def _signed(queue: str, data: bytes) -> bytes:
    return b"\n".join((PURPOSE, queue.encode(), data))


def _verifies(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise SettingsError(
            f"[agent] controller_keys: {text[:60]!r} is not an Ed25519 public key in base64."
        ) from error


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
