"""Creating servers: everything is checked first, then rows, ports and the build begin in one transaction."""

from __future__ import annotations

import base64
import re
from ipaddress import ip_address
from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import quotas
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding, hardware
from whimbrel.api.parameters import TRUE
from whimbrel.api.schemas.servers import NAME
from whimbrel.api.views import links
from whimbrel.api.views import networks as network_view
from whimbrel.api.views.servers import ZONE
from whimbrel.domain.errors import Conflict, Invalid, NotFound
from whimbrel.domain.migration import Kind
from whimbrel.domain.tpm import tpm_of
from whimbrel.identity import policy
from whimbrel.migration import protocols
from whimbrel.ops import ids
from whimbrel.store import actions, flavors, hosts_view, images, migrations, networks, servers

Outbox = list[tuple[int, str, object]]

MIB = 1024 * 1024
MAX_SERVERS_AT_ONCE = 100


async def create(call: Call) -> Reply:
    """Create one server or several alike."""
    _refuse_unsupported(call.body["server"])
    password = call.body["server"].get("adminPass") or ids.new_secret(12)[:12]
    made, reservation, outbox = await call.services.store.write(_create, call)
    await call.services.publish(outbox)
    if is_true(call.body["server"].get("return_reservation_id")):
        return Reply(202, {"reservation_id": reservation})
    found = links.of(call.services.public_url, "servers", made[0])
    server = {
        "id": made[0],
        "links": found,
        "adminPass": password,
        "OS-DCF:diskConfig": call.body["server"].get("OS-DCF:diskConfig", "MANUAL"),
        "security_groups": [{"name": "default"}],
    }
    return Reply(202, {"server": server}, {"Location": found[0]["href"]})


def _create(tx: Connection, call: Call) -> tuple[list[str], str, Outbox]:
    given = call.body["server"]
    count = _count(given)
    flavor = _flavor(tx, call, given)
    image = _image(tx, call, given)
    _check_fit(flavor, image)
    hardware.refuse_special(f"Image {image.id}", image.properties)
    hardware.refuse_special(f"Flavor {flavor.id}", flavor.extra_specs)
    tpm_of(image.properties, flavor.extra_specs)
    wanted = _networks(tx, call, given)
    zone, host = _place(tx, call, given)
    quotas.check_metadata(len(given.get("metadata") or {}))
    used = servers.usage(tx, call.who.project_id or "")
    quotas.check_growth(used, servers.Usage(count, count * flavor.vcpus, count * flavor.ram_mb))
    reservation = "r-" + ids.new_hex()[:8]
    who = finding.asked(call)
    made: list[str] = []
    outbox: Outbox = []
    for index in range(count):
        server_id = ids.new_uuid()
        name = given["name"] if count == 1 else f"{given['name']}-{index + 1}"
        row = _row(call, given, name) | {
            "id": server_id,
            "reservation_id": reservation,
            "launch_index": index,
            "flavor": flavors.snapshot(flavor),
            "image": _image_snapshot(image),
            "image_properties": image.properties,
            "availability_zone": zone,
            "pinned_zone": zone,
            "forced_host": host,
        }
        servers.insert(tx, row)
        for network_id in wanted:
            networks.allocate_port(tx, network_id, server_id)
        begun = migrations.begin(
            tx,
            server_id,
            Kind.BUILD,
            protocols.BUILD,
            request_id=who.request_id,
            user_id=who.user_id,
            project_id=who.project_id,
            forced_host=host,
        )
        actions.record(tx, server_id, "create", who, migration_id=begun.migration_id, segment=begun.segment)
        made.append(server_id)
        outbox += begun.outbox
    return made, reservation, outbox


def _row(call: Call, given: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the columns that come from the body as they are."""
    return {
        "name": name,
        "project_id": call.who.project_id,
        "user_id": call.who.user_id,
        "metadata": given.get("metadata") or {},
        "tags": list(dict.fromkeys(given.get("tags") or ())),
        "scheduler_hints": call.body.get("os:scheduler_hints") or call.body.get("OS-SCH-HNT:scheduler_hints") or {},
        # Before 2.19 a server's description was its name.
        "description": given.get("description") if call.version >= (2, 19) else name,
        "hostname": given.get("hostname") or _hostname(name),
        "user_data": given.get("user_data"),
        "config_drive": is_true(given.get("config_drive")),
        "disk_config": given.get("OS-DCF:diskConfig", "MANUAL"),
        "access_ipv4": given.get("accessIPv4", ""),
        "access_ipv6": canonical(given.get("accessIPv6", "")),
    }


def is_true(value: object) -> bool:
    """Read a boolean that may come as a word."""
    return value is True or (isinstance(value, str) and value != "" and value.lower() in TRUE)


def _refuse_unsupported(given: dict[str, Any]) -> None:
    """Refuse what would be ignored otherwise: the user would believe it was done."""
    if given.get("key_name"):
        raise Invalid("Invalid key_name provided.")
    if given.get("personality"):
        raise Invalid("Files cannot be injected into servers; use user_data.")
    if given.get("block_device_mapping") or given.get("trusted_image_certificates"):
        raise Invalid("Volumes and image certificates are not supported; boot from an image.")
    data = given.get("user_data")
    if data and len(base64.b64decode("".join(data.split()))) > 65535:
        raise Invalid("user_data is larger than 65535 bytes.")


def _count(given: dict[str, Any]) -> int:
    least = int(given.get("min_count") or 1)
    most = int(given.get("max_count") or least)
    if least > most:
        raise Invalid("min_count must be <= max_count")
    if most > MAX_SERVERS_AT_ONCE:
        raise Invalid(f"At most {MAX_SERVERS_AT_ONCE} servers can be created in one request.")
    if most > 1 and len(f"{given['name']}-{most}") > NAME["maxLength"]:
        raise Invalid(f"The name is too long to be numbered from 1 to {most}; shorten it.")
    return most


def _flavor(tx: Connection, call: Call, given: dict[str, Any]) -> Row[Any]:
    wanted = str(given["flavorRef"])
    try:
        row = flavors.find(tx, wanted, finding.scope(call))
    except NotFound as error:
        raise Invalid(str(error)) from error
    if row.disabled:
        raise Invalid(f"Flavor {wanted} could not be found.")
    return row


def _image(tx: Connection, call: Call, given: dict[str, Any]) -> Row[Any]:
    """Return the image that the server is made from; the disk mapping may only say the same again."""
    wanted = given.get("imageRef") or ""
    for disk in given.get("block_device_mapping_v2") or ():
        plain = disk.get("source_type") == "image" and disk.get("destination_type", "local") == "local"
        if not plain or str(disk.get("boot_index", "0")) != "0" or (wanted and disk.get("uuid") != wanted):
            raise Invalid("Block Device Mapping is Invalid: a server has one disk, local, from its image.")
        wanted = disk.get("uuid") or wanted
    if not wanted:
        raise Invalid("Invalid imageRef provided.")
    try:
        row = images.find_image(tx, wanted, call.who.project_id, every=call.who.is_admin)
    except NotFound as error:
        raise Invalid(f"Can not find requested image {wanted}.") from error
    if row.status != "active":
        raise Invalid(f"Image {wanted} is not active.")
    return row


def _check_fit(flavor: Row[Any], image: Row[Any]) -> None:
    if image.min_ram_mb > flavor.ram_mb:
        raise Invalid("Flavor's memory is too small for requested image.")
    if flavor.disk_gb and image.min_disk_gb > flavor.disk_gb:
        raise Invalid("Flavor's disk is smaller than the minimum size specified in image metadata.")
    if flavor.disk_gb and _virtual_mb(image) > flavor.disk_gb * 1024:
        raise Invalid(
            f"Flavor's disk is too small for requested image. Flavor disk is {flavor.disk_gb * 1024 * MIB} bytes, "
            f"image is {_virtual_mb(image) * MIB} bytes."
        )


def _virtual_mb(image: Row[Any]) -> int:
    return -(-(image.virtual_size_bytes or image.size_bytes or 0) // MIB)


def _image_snapshot(image: Row[Any]) -> dict[str, Any]:
    return {
        "id": image.id,
        "sha256": image.sha256,
        "format": image.disk_format,
        "size_bytes": image.size_bytes,
        "virtual_size_mb": _virtual_mb(image),
    }


def _networks(tx: Connection, call: Call, given: dict[str, Any]) -> list[str]:
    """Return the networks that the server gets a port in: as named, or the only one that there is."""
    for group in given.get("security_groups") or ():
        if group.get("name") not in ("default", network_view.security_group(call.who.project_id or "")["id"]):
            raise Invalid(f"Security group {group.get('name')} not found for project {call.who.project_id}.")
    named = given.get("networks", "auto")
    if named == "none":
        return []
    if named == "auto" or not named:
        found = networks.list_networks(tx, call.who.project_id)
        if len(found) > 1:
            raise Conflict("Multiple possible networks found, use a Network ID to be more specific.")
        return [row.id for row in found]
    if any(item.get("port") or item.get("fixed_ip") or not item.get("uuid") for item in named):
        raise Invalid("Ports and fixed addresses cannot be chosen; name a network by its uuid.")
    who = call.who
    try:
        return [networks.find_network(tx, item["uuid"], who.project_id, every=who.is_admin).id for item in named]
    except NotFound as error:
        raise Invalid(str(error)) from error


def _place(tx: Connection, call: Call, given: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the zone that was asked for and the host that is forced (administrators only)."""
    zone, _, host = (given.get("availability_zone") or "").partition(":")
    host = host.partition(":")[0] or given.get("host") or given.get("hypervisor_hostname") or ""
    if zone not in ("", ZONE):
        raise Invalid("The requested availability zone is not available")
    if not host:
        return zone or None, None
    policy.enforce("os_compute_api:servers:create:forced_host", call.who, {"project_id": call.who.project_id})
    if hosts_view.find(tx, host) is None:
        raise Invalid(f"Compute host {host} could not be found.")
    return zone or None, host


def _hostname(name: str) -> str:
    """Make a server's name a name that a machine can have."""
    plain = re.sub(r"[^a-z0-9-]+", "-", re.sub(r"[._ ]", "-", name.lower())).strip("-")
    return plain[:63].strip("-") or "server"


def canonical(address: str) -> str:
    """Write an address in its one short form."""
    return str(ip_address(address)) if address else ""
