"""The commands by which people copy a file to another host, over an sshd that is not Whimbrel's."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from whimbrel.lab import Lab
from whimbrel.lab.configs import INSTANCES_DIR

MIB = 1 << 20
PORT = 2222
FAST = "aes128-gcm@openssh.com"
HERE, THERE = f"{INSTANCES_DIR}/bench-data", f"{INSTANCES_DIR}/bench-copy"


@dataclass(frozen=True)
class Reference:
    """A command that copies the file, as it is run on the source; None for a tool that is not installed."""

    name: str
    command: str
    needs: str


def bystand(lab: Lab, gib: int) -> Path:
    """Make the file, and an sshd of its own at h2 that a new key opens; return the directory of the key."""
    place = lab.dir / "bench"
    place.mkdir()
    place.chmod(0o711)
    with (lab.host("h1").dir / "instances/bench-data").open("wb") as file:
        for _ in range(gib * 4):
            file.write(os.urandom(256 * MIB))
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    (place / "authorized").write_text((place / "key.pub").read_text())
    (place / "sshd_config").write_text(
        f"Port {PORT}\nHostKey {place}/host_key\nAuthorizedKeysFile {place}/authorized\nStrictModes no\nPidFile none\n"
        "UsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    host = lab.host("h2")
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", f"{place}/sshd_config"]
    host.processes.start("bench-sshd@h2", command, log=place / "sshd.log", inside=host.up())
    target = host.address
    (place / "ssh_config").write_text(
        f"Host target\n HostName {target}\n Port {PORT}\n User root\n IdentityFile {place}/key\n BatchMode yes\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
    )
    return place


def references(place: Path) -> list[Reference]:
    """Return the commands; `place` is what `bystand` returned."""
    ssh = f"ssh -F {place}/ssh_config"
    nbd = f"qemu-nbd --fork --persistent -f raw -k {INSTANCES_DIR}/bench.sock --pid-file {INSTANCES_DIR}/bench.pid"
    size = f"$(stat -c %s {HERE})"
    over_nbd = (
        f"{ssh} target 'truncate -s '{size}' {THERE}; {nbd} {THERE}' && "
        f"{ssh} -c {FAST} -f -N -M -S {place}/control -L {place}/there.sock:{INSTANCES_DIR}/bench.sock target && "
        f"nbdcopy {HERE} 'nbd+unix:///?socket={place}/there.sock'; status=$?; "
        f"{ssh} -S {place}/control -O exit target 2>/dev/null; rm -f {place}/there.sock; "
        f"{ssh} target 'kill $(cat {INSTANCES_DIR}/bench.pid)'; exit $status"
    )
    return [
        Reference("scp", f"scp -q -F {place}/ssh_config {HERE} target:{THERE}", "scp"),
        Reference("scp, aes128-gcm", f"scp -q -c {FAST} -F {place}/ssh_config {HERE} target:{THERE}", "scp"),
        Reference(
            "the same, synced, compared",
            f"scp -q -c {FAST} -F {place}/ssh_config {HERE} target:{THERE} && here=$(sha256sum < {HERE}) && "
            f'there=$({ssh} target \'sync {THERE} && sha256sum < {THERE}\') && test "$here" = "$there"',
            "scp",
        ),
        Reference("rsync -S", f"rsync -S -e '{ssh}' {HERE} target:{THERE}", "rsync"),
        Reference("ssh pipe, aes128-gcm", f"{ssh} -c {FAST} target 'cat > {THERE}' < {HERE}", "ssh"),
        Reference("nbdcopy over ssh -L", over_nbd, "nbdcopy"),
    ]


def source(lab: Lab) -> Path:
    """Return the file that the commands copy."""
    return Path(lab.host("h1").dir, "instances/bench-data")


def settle(lab: Lab, file: Path) -> None:
    """Leave nothing to be written of the copy before, and let the next one find its file in the kernel's memory.

    So nobody pays for what another left to the kernel, and each has the same to read.
    """
    (lab.host("h2").dir / "instances/bench-copy").unlink(missing_ok=True)
    os.sync()
    with file.open("rb") as content:
        while content.read(MIB):
            pass


def copied(lab: Lab, one: Reference) -> float:
    """Copy the file; return the seconds that the command took."""
    began = time.monotonic()
    done = lab.host("h1").exec(["bash", "-c", one.command], check=False, timeout=600)
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{shlex.quote(one.command)} failed: {done.stderr[-500:]}")
    return seconds


def remove(lab: Lab) -> None:
    """Remove what was copied."""
    for path in (lab.host("h1").dir / "instances/bench-data", lab.host("h2").dir / "instances/bench-copy"):
        path.unlink(missing_ok=True)
