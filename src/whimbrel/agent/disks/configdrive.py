"""The config drive: an ISO 9660 image, labelled config-2, that tells a guest its name, network and user data.

It is made once, when the server is built, and carried unchanged after that.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import shutil
from pathlib import Path
from typing import Any

from whimbrel.agent.disks.frames import CONFIG_DRIVE, MOST_CONFIG
from whimbrel.agent.disks.programs import run
from whimbrel.domain.server import Guest, Nic
from whimbrel.migration.ports import Control


def make_config_drive(directory: Path, guest: Guest, control: Control) -> None:
    """Write the config drive into a server's directory."""
    tree = directory / "config"
    latest = tree / "openstack" / "latest"
    latest.mkdir(parents=True, exist_ok=True)
    (latest / "meta_data.json").write_text(json.dumps(meta_data(guest)), encoding="utf-8")
    (latest / "network_data.json").write_text(json.dumps(network_data(guest)), encoding="utf-8")
    if guest.user_data is not None:
        (latest / "user_data").write_bytes(base64.b64decode(guest.user_data))
    argv = ["genisoimage", "-quiet", "-J", "-r", "-V", "config-2", "-o", CONFIG_DRIVE, tree.name]
    run(argv, directory, control, file_bytes=MOST_CONFIG)
    shutil.rmtree(tree)


def meta_data(guest: Guest) -> dict[str, Any]:
    """Return what the guest is told about itself."""
    return {
        "uuid": guest.uuid,
        "name": guest.name,
        "hostname": _hostname(guest.name),
        "launch_index": 0,
        "meta": guest.metadata,
    }


def network_data(guest: Guest) -> dict[str, Any]:
    """Return the guest's links and static addresses, in OpenStack's form."""
    links, networks = [], []
    for index, nic in enumerate(guest.nics):
        link = f"link-{index}"
        links.append({"id": link, "type": "phy", "ethernet_mac_address": nic.mac, "mtu": nic.mtu})
        networks.append({"id": f"network-{index}", "link": link, **_static(nic)})
    return {"links": links, "networks": networks, "services": []}


def _static(nic: Nic) -> dict[str, Any]:
    interface = ipaddress.ip_interface(f"{nic.address}/{nic.prefix}")
    everywhere = "0.0.0.0" if interface.version == 4 else "::"
    static: dict[str, Any] = {
        "type": f"ipv{interface.version}",
        "network_id": nic.network,
        "ip_address": nic.address,
        "netmask": str(interface.netmask),
        "routes": [],
    }
    if nic.gateway:
        static["gateway"] = nic.gateway
        static["routes"].append({"network": everywhere, "netmask": everywhere, "gateway": nic.gateway})
    return static


def _hostname(name: str) -> str:
    """Return a server's name as a host name: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.")[:63] or "server"
