"""What a host needs for its channels: a key of its own, an sshd of its own, and the authority that both obey.

The directory of it is made by one command, and made again with new keys by the same. Everything in it is the host's
alone; the public halves of its keys go to the conductor with each heartbeat.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whimbrel.domain.errors import SettingsError
from whimbrel.identity.authority import RECEIVE, public_line, read_public
from whimbrel.ops import ids

CLIENT_KEY = "channel_key"
HOST_KEY = "host_key"
SSHD_CONFIG = "sshd_config"
UNIT = "whimbrel-channel.service"

_SSHD = """\
# Made by `whimbrel host enroll`, which writes it anew. This sshd serves the disks of moves and nothing else.
Port {port}
ListenAddress {address}
HostKey {dir}/host_key
PidFile none
AuthorizedKeysFile none
TrustedUserCAKeys {dir}/authorities
AuthorizedPrincipalsFile {dir}/principals
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
AllowUsers root
PermitRootLogin forced-commands-only
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
DisableForwarding yes
SetEnv PATH={dir}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LoginGraceTime 20
MaxStartups 100:30:200
LogLevel VERBOSE
"""

_UNIT = """\
[Unit]
Description=SSH daemon of Whimbrel's channels
After=network-online.target
Wants=network-online.target

[Service]
RuntimeDirectory=sshd
RuntimeDirectoryPreserve=yes
ExecStart=/usr/sbin/sshd -D -f {dir}/sshd_config
KillMode=process
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""

_PATH = re.compile(r"/[A-Za-z0-9._/-]+")
"""What stands in the configuration of sshd without quotes."""


@dataclass(frozen=True)
class Enrolment:
    """One host: its name, where its sshd listens, whom it obeys, and what runs at the end of a channel.

    `place` is the directory's path as the host's own programs see it.
    """

    host: str
    address: str
    port: int
    authorities: Sequence[str]
    receiver: Sequence[str]
    place: Path


def enroll(directory: Path, made: Enrolment) -> None:
    """Write a host's channel directory with fresh keys (0600); SettingsError names what cannot be."""
    if not made.authorities:
        raise SettingsError(
            "[agent] channel_authorities names no key; on a controller, `whimbrel host authority` prints it."
        )
    if not _PATH.fullmatch(str(made.place)):
        raise SettingsError(f"agent.channel_dir {str(made.place)!r} may have letters, digits and ._-/ only.")
    try:
        ip_address(made.address)
    except ValueError as error:
        raise SettingsError(
            f"agent.address {made.address!r} is no IP address, and a host is let in from its own address only."
        ) from error
    try:
        lines = [public_line(read_public(line)) for line in made.authorities]
    except ValueError as error:
        raise SettingsError(f"[agent] channel_authorities: {error}.") from error
    try:
        (directory / "bin").mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.chmod(0o755)
        for name in (CLIENT_KEY, HOST_KEY):
            _make_key(directory / name)
        _replace(directory / "authorities", "".join(f"{line}\n" for line in lines), 0o644)
        _replace(directory / "principals", f"{made.host}\n", 0o644)
        script = f'#!/bin/sh\nexec {shlex.join(made.receiver)} "$@"\n'
        _replace(directory / "bin" / RECEIVE, script, 0o755)
        sshd = _SSHD.format(port=made.port, address=made.address, dir=made.place)
        _replace(directory / SSHD_CONFIG, sshd, 0o644)
        _replace(directory / UNIT, _UNIT.format(dir=made.place), 0o644)
    except OSError as error:
        raise SettingsError(f"Cannot write {error.filename or directory}: {error.strerror}.") from error


def public_half(directory: Path, name: str) -> str:
    """Return the public half of one of a host's keys; an empty one when the host is not enrolled."""
    try:
        return (directory / f"{name}.pub").read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _make_key(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _replace(path, private.decode(), 0o600)
    _replace(path.with_name(f"{path.name}.pub"), f"{public_line(key.public_key())}\n", 0o644)


def _replace(path: Path, content: str, mode: int) -> None:
    """Write a file so that it is the old or the new one, and never readable by more than `mode` says."""
    draft = path.with_name(f".{path.name}.{ids.new_hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
