"""An audit of real hosts: domains and files that do not belong there, a guest started behind the conductor's back."""

from __future__ import annotations

import json

import pytest

from tests.cloud import Cloud, Json, wait_for

pytestmark = pytest.mark.real

FOREIGN = "99999999-2222-4333-8444-555555555555"


def audit(cloud: Cloud, *, repair: bool = False) -> Json:
    """Run an audit through the API."""
    answer = cloud.http.post("/whimbrel/v1/audit", json={"repair": repair}, timeout=60).raise_for_status()
    report: Json = answer.json()["audit"]
    return report


def told(report: Json) -> list[tuple[str, str, str | None]]:
    """Return what was found: kind, host, server."""
    return sorted((row["kind"], row["host"], row["server_id"]) for row in report["findings"])


def define(cloud: Cloud, host: str, uuid: str) -> None:
    """Make a guest without disks known to a host's libvirt."""
    xml = (
        f"<domain type='qemu'><name>{uuid}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
    )
    cloud.lab.host(host).exec(["virsh", "define", "/dev/stdin"], input=xml)


def test_what_does_not_belong_on_a_host_is_told_and_mended(lab_guests: Cloud) -> None:
    cloud = lab_guests
    server, deleted = cloud.create(), cloud.create(host="h2")
    deleted.delete()
    cloud.servers.remove(deleted)
    assert audit(cloud)["findings"] == []

    for uuid in (server.id, deleted.id, FOREIGN):
        define(cloud, "h2", uuid)
    cloud.lab.host("h2").exec(["virsh", "start", server.id])
    copy = cloud.instances("h2") / deleted.id
    copy.mkdir()
    (copy / "manifest.json").write_text(json.dumps({"attempt": "1-1"}))
    assert cloud.runners(server.id) == ["h1", "h2"]
    report = audit(cloud)
    assert told(report) == sorted(
        [
            ("two_runners", "h2", server.id),
            ("orphan_domain", "h2", deleted.id),
            ("orphan_file", "h2", deleted.id),
            ("foreign_domain", "h2", FOREIGN),
        ]
    )
    assert report["drift"] == 3 and cloud.runners(server.id) == ["h1", "h2"]

    assert audit(cloud, repair=True)["drift"] == 0
    wait_for("the repairs", lambda: told(audit(cloud)) == [("foreign_domain", "h2", FOREIGN)])
    assert cloud.lab.host("h2").exec(["virsh", "list", "--all", "--uuid"]).stdout.split() == [FOREIGN]
    assert not copy.exists()
    server.assert_nothing_lost("h1")
    cloud.lab.host("h2").exec(["virsh", "undefine", FOREIGN])


def test_a_process_that_libvirt_has_forgotten_is_told(lab_guests: Cloud) -> None:
    cloud = lab_guests
    server = cloud.create()
    host = cloud.lab.host("h1")
    name = host.exec(["virsh", "domname", server.id]).stdout.strip()
    kept, away = f"/run/libvirt/qemu/{name}.xml", f"/run/{name}.away"
    cloud.lab.kill("libvirtd", "h1")
    host.exec(["mv", kept, away])  # by which libvirtd finds its guests again
    cloud.lab.start("libvirtd", "h1")
    try:
        wait_for("the host", lambda: "not_looked_at" not in [kind for kind, *_ in told(audit(cloud))])
        report = audit(cloud, repair=True)
        assert told(report) == [("process_without_domain", "h1", server.id)]
        assert cloud.runners(server.id) == ["h1"]
    finally:
        cloud.lab.kill("libvirtd", "h1")
        host.exec(["mv", away, kept])
        cloud.lab.start("libvirtd", "h1")
    wait_for("libvirtd to find it again", lambda: audit(cloud)["findings"] == [])
    server.assert_nothing_lost("h1")
