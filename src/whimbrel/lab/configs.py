"""The settings files that the lab writes for each role, and the clients' clouds.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from whimbrel.bus.signing import Signer
from whimbrel.identity.authority import SshAuthority
from whimbrel.lab.broker import Broker
from whimbrel.lab.certificates import tls_of
from whimbrel.lab.network import GUEST_BRIDGE, GUEST_CIDR, MTU
from whimbrel.lab.state import write_private
from whimbrel.ops import ids

API_PORT = 8774
NETWORK_NAME = "private"
# Where the host's `instances` directory appears inside it: the same path on every host, as on real ones.
INSTANCES_DIR = "/var/lib/libvirt/instances"
RUN_DIR = "/run/whimbrel"
# Not below a directory that all may write, in which sshd would not believe what it reads.
CHANNEL_DIR = "/var/lib/libvirt/channel"
CHANNEL_PORT = 22
USERS: list[dict[str, Any]] = [
    {"name": "admin", "project": "admin", "roles": ["admin"]},
    {"name": "demo", "project": "demo", "roles": ["member"]},
    {"name": "manager", "project": "demo", "roles": ["manager", "member"]},
    {"name": "reader", "project": "demo", "roles": ["reader"]},
]
# Guests are emulated (no KVM is assumed), so a host is small and patient; anything can be overridden by `Lab.up`.
AGENT = {
    "instances_dir": INSTANCES_DIR,
    "run_dir": RUN_DIR,
    "channel_dir": CHANNEL_DIR,
    "channel_port": CHANNEL_PORT,
    "hypervisor": "libvirt",
    "libvirt_uri": "qemu:///system",
    "virt_type": "qemu",
    "machine": "pc-i440fx-7.2",
    "cpu_model": "qemu64",
    "bridge": GUEST_BRIDGE,
    "mtu": MTU,
    "vcpus": 8,
    "ram_mb": 4096,
    "disk_gb": 40,
    "reserved_ram_mb": 0,
    "heartbeat_interval": 2,
    "stall_timeout": 20,
}
CONDUCTOR = {"shutdown_grace": 20, "service_down_after": 10, "census": 4.0}

Tables = Mapping[str, Mapping[str, Any]]


def api_url(address: str) -> str:
    """Return where the API answers."""
    return f"https://{address}:{API_PORT}"


def write_controller(path: Path, address: str, broker: Broker, override: Tables) -> None:
    """Write the settings of api, scheduler and conductor; everything durable lies beside the file."""
    here = path.parent
    url = api_url(address)
    proof = tls_of(tls_dir(here), "api")
    tables: dict[str, dict[str, Any]] = {
        "database": {"url": f"sqlite:///{here}/whimbrel.db"},
        "broker": {"url": broker.url, "ca_file": str(proof.authority)},
        "api": {
            "listen": address,
            "port": API_PORT,
            "public_url": url,
            "image_dir": f"{here}/images",
            "certificate_file": str(proof.certificate),
            "key_file": str(proof.key),
        },
        "identity": {"key_file": f"{here}/token.keys"},
        "orders": {"key_file": str(order_key(here))},
        "channels": {"authority_file": str(channel_authority(here))},
        "conductor": {**CONDUCTOR, "image_url": f"{url}/image"},
    }
    _write(path, tables, override)


def tls_dir(dir: Path) -> Path:
    """Return where a lab keeps its certificates."""
    return dir / "tls"


def order_key(dir: Path) -> Path:
    """Return where a lab's controllers keep the key that they sign orders with."""
    return dir / "order.key"


def channel_authority(dir: Path) -> Path:
    """Return where a lab's controllers keep the key that they sign passes with."""
    return dir / "channels.key"


def write_agent(path: Path, host: str, address: str, broker: Broker, override: Tables) -> None:
    """Write the settings of one host's agent, with its own credentials and nobody else's."""
    here, lab = path.parent, path.parents[2]
    authority = str(tls_of(tls_dir(lab), "broker").authority)
    own = {
        "host": host,
        "address": address,
        "controller_keys": [Signer.load(order_key(lab)).public_key],
        "ca_file": authority,
        "state_dir": f"{here}/agent",
        "channel_authorities": [SshAuthority.load(channel_authority(lab)).public_key],
    }
    _write(path, {"broker": {"url": broker.url_of(host), "ca_file": authority}, "agent": {**AGENT, **own}}, override)


def write_users(dir: Path, url: str) -> None:
    """Write `bootstrap.json` and `clouds.yaml` with the same fresh passwords."""
    users = [{**user, "password": ids.new_secret(18)} for user in USERS]
    network = {"name": NETWORK_NAME, "cidr": GUEST_CIDR, "mtu": MTU}
    bootstrap = {"projects": ["admin", "demo", "other"], "users": users, "network": network}
    write_private(dir / "bootstrap.json", json.dumps(bootstrap, indent=1))
    clouds = {
        user["name"]: {
            "auth": {
                "auth_url": f"{url}/identity/v3",
                "username": user["name"],
                "password": user["password"],
                "project_name": user["project"],
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": "RegionOne",
            "cacert": str(tls_of(tls_dir(dir), "api").authority),
            "identity_api_version": "3",
        }
        for user in users
    }
    write_private(dir / "clouds.yaml", yaml.safe_dump({"clouds": clouds}, sort_keys=False))


def _write(path: Path, tables: Tables, override: Tables) -> None:
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        # JSON's strings, numbers and booleans are written the same way in TOML.
        lines += [f"{key} = {json.dumps(value)}" for key, value in {**table, **override.get(name, {})}.items()]
    write_private(path, "\n".join(lines) + "\n")
