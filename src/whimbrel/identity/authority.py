"""The one key that lets a host reach another: an SSH authority whose certificates each open one thing for minutes.

No host trusts another. A host trusts this authority, and the authority says: the holder of this key may, from this
address, until then, have this one command run on that one host.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from whimbrel.domain.errors import SettingsError
from whimbrel.ops import clock, keyfile

LIFETIME = 300
"""Seconds in which a session may begin; one that has begun lives on. Whoever needs another later is given a new one."""

EARLIER = 60
"""Seconds by which a certificate is good before it was made, for hosts whose clocks are slow."""

RECEIVE = "whimbrel-receive"
"""The program at the far end; the sshd of a channel finds it by this name alone."""


@dataclass(frozen=True)
class Leave:
    """What one certificate allows: `holder` (a public key), at `address`, to have `command` run on `host`."""

    holder: str
    address: str
    host: str
    command: str
    key_id: str
    serial: int = 0


class SshAuthority:
    """Signs with the controllers' private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> SshAuthority:
        """Read the private key (PEM), made at the first use; SettingsError if that cannot be."""
        try:
            if not path.exists():
                keyfile.make(path, private_pem(Ed25519PrivateKey.generate()))
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise SettingsError(f"Cannot read or make the channel authority {path}: {error.strerror}.") from error
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{path} holds no private key in PEM without a password: {error}.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{path} holds a key of another kind than Ed25519; remove the file to have one made.")
        return cls(key)

    @property
    def public_key(self) -> str:
        """The public key as hosts' settings and sshd name it: `ssh-ed25519 AAAA...`."""
        return public_line(self._key.public_key())

    def sign(self, leave: Leave) -> tuple[str, float]:
        """Return a certificate and when it ends (seconds since the epoch); ValueError if the leave makes no sense."""
        now = int(clock.now())
        address = ip_address(leave.address)
        builder = (
            serialization.SSHCertificateBuilder()
            .public_key(read_public(leave.holder))
            .type(serialization.SSHCertificateType.USER)
            .serial(leave.serial)
            .key_id(leave.key_id.encode())
            .valid_principals([leave.host.encode()])
            .valid_after(now - EARLIER)
            .valid_before(now + LIFETIME)
            .add_critical_option(b"force-command", leave.command.encode())
            .add_critical_option(b"source-address", f"{address}/{address.max_prefixlen}".encode())
        )  # no extension is added: no pty, no forwarding of anything, no rc file
        return builder.sign(self._key).public_bytes().decode(), float(now + LIFETIME)


def read_public(line: str) -> Ed25519PublicKey:
    """Return the key of a line as in a .pub file; ValueError if it is none of Ed25519."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(f"{line[:60]!r} is no key of a known kind") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{line[:60]!r} is no Ed25519 key")
    return key


def public_line(key: Ed25519PublicKey) -> str:
    """Return a key as it stands in a .pub file, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def private_pem(key: Ed25519PrivateKey) -> bytes:
    """Return a private key in PEM, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
