"""SSH between the hosts of a lab: one key pair for all, a host key each, and no shell behind either.

A host accepts the lab's key only from the other hosts' addresses and only to receive disks: sshd runs the receiver
whatever the client asks for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SSHD_CONFIG = """\
Port 22
ListenAddress {address}
HostKey {dir}/ssh/host_key
PidFile none
AuthorizedKeysFile /run/ssh/authorized_keys
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxStartups 100:30:200
LogLevel VERBOSE
"""

CLIENT_CONFIG = """\
Host *
  User root
  IdentityFile {key}
  IdentitiesOnly yes
  UserKnownHostsFile {known_hosts}
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
  ServerAliveInterval 5
  ServerAliveCountMax 3
  Ciphers aes128-gcm@openssh.com
  LogLevel ERROR
"""


def make_keys(dir: Path, addresses: dict[str, str]) -> None:
    """Make the lab's key in `dir/ssh`, each host's own in `dir/hosts/<host>/ssh`, and the list of all of them."""
    key = dir / "ssh" / "id_ed25519"
    _keygen(key, "lab")
    known = []
    for host, address in addresses.items():
        host_key = dir / "hosts" / host / "ssh" / "host_key"
        _keygen(host_key, host)
        kind, public = host_key.with_suffix(".pub").read_text().split()[:2]
        known.append(f"{host},{address} {kind} {public}\n")
    (dir / "ssh" / "known_hosts").write_text("".join(known))


def write_configs(dir: Path, host: str, addresses: dict[str, str]) -> None:
    """Write the host's sshd_config, authorized_keys and client configuration."""
    own = dir / "hosts" / host
    (own / "ssh" / "sshd_config").write_text(SSHD_CONFIG.format(address=addresses[host], dir=own))
    shared = dir / "ssh"
    client = CLIENT_CONFIG.format(key=shared / "id_ed25519", known_hosts=shared / "known_hosts")
    named = "".join(f"Host {name}\n  HostName {address}\n" for name, address in addresses.items())
    (own / "ssh" / "config").write_text(named + client)
    command = f"{sys.executable} -I -m whimbrel.agent.disks.receive --config {own}/agent.toml"
    origins = ",".join(address for name, address in addresses.items())
    public = (shared / "id_ed25519.pub").read_text()
    (own / "ssh" / "authorized_keys").write_text(f'restrict,from="{origins}",command="{command}" {public}')


def _keygen(path: Path, comment: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
