"""A thin client of a cloud under measurement: one login, one connection, polls in milliseconds."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import httpx2
import yaml

POLL = 0.01
"""Seconds between two looks. Each costs the controller some milliseconds, so a crowd looks less often."""
SELDOM = 0.5
"""Seconds between two looks at a move that is measured: each costs the processors that it is short of."""

DEADLINE = 900.0


class Cloud:
    """The administrator's view of one cloud."""

    def __init__(self, clouds_yaml: Path) -> None:
        login = yaml.safe_load(clouds_yaml.read_text())["clouds"]["admin"]
        auth = login["auth"]
        self._root = auth["auth_url"].removesuffix("/identity/v3")
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        scope = {"project": {"name": auth["project_name"], "domain": domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        known = ssl.create_default_context(cafile=login.get("cacert"))
        self.http = httpx2.Client(base_url=self._root, timeout=60, trust_env=False, verify=known)
        answer = self.http.post("/identity/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
        answer.raise_for_status()
        self.http.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]

    def get(self, path: str, version: str = "2.100") -> Any:
        """GET a compute path."""
        answer = self.http.get(f"/compute/v2.1{path}", headers={"OpenStack-API-Version": f"compute {version}"})
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any, version: str = "2.100") -> Any:
        """POST to a compute path."""
        answer = self.http.post(
            f"/compute/v2.1{path}", json=body, headers={"OpenStack-API-Version": f"compute {version}"}
        )
        if answer.status_code >= 400:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def flavor(self, name: str, **size: int) -> str:
        """Return the id of a flavor of this name, made if it is not there."""
        for row in self.get("/flavors")["flavors"]:
            if row["name"] == name:
                return str(row["id"])
        return str(self.post("/flavors", {"flavor": {"name": name, **size}}, "2.61")["flavor"]["id"])

    def image(self) -> str:
        """Return the guest image's id."""
        return str(self.http.get("/image/v2/images").json()["images"][0]["id"])

    def network(self) -> str:
        """Return the network's id."""
        return str(self.http.get("/network/v2.0/networks").json()["networks"][0]["id"])

    def create(self, name: str, flavor: str, *, user_data: str | None = None, networked: bool = True) -> str:
        """Create a server and wait until it is ACTIVE; return its id."""
        import base64

        body: dict[str, Any] = {"name": name, "imageRef": self.image(), "flavorRef": flavor}
        body["networks"] = [{"uuid": self.network()}] if networked else "none"
        if user_data:
            body["user_data"] = base64.b64encode(user_data.encode()).decode()
        server = str(self.post("/servers", {"server": body})["server"]["id"])
        self.wait(server, "ACTIVE")
        return server

    def action(self, server: str, body: dict[str, Any]) -> None:
        """POST a server action."""
        self.post(f"/servers/{server}/action", body)

    def wait(self, server: str, *states: str, poll: float = POLL) -> float:
        """Wait until the server shows one of these states with no task; return the time of that."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            shown = self.get(f"/servers/{server}")["server"]
            if shown["status"] in states and shown["OS-EXT-STS:task_state"] is None:
                return time.monotonic()
            if shown["status"] == "ERROR" and "ERROR" not in states:
                raise RuntimeError(f"{server} is in ERROR: {shown.get('fault')}")
            time.sleep(poll)
        raise TimeoutError(f"{server} did not become {states}; it is {shown['status']}")

    def timed(self, server: str, body: dict[str, Any], *states: str) -> float:
        """Do an action and return the seconds until the state is shown."""
        begin = time.monotonic()
        self.action(server, body)
        return self.wait(server, *states) - begin

    def story(self, server: str) -> dict[str, Any]:
        """Return Whimbrel's own document of the server's newest migration."""
        rows = self.http.get("/whimbrel/v1/migrations", params={"server": server, "limit": 1}).json()["migrations"]
        answer = self.http.get(f"/whimbrel/v1/migrations/{rows[0]['id']}").json()
        return dict(answer["migration"])

    def delete(self, server: str) -> None:
        """Delete a server and wait until it is gone."""
        self.http.delete(f"/compute/v2.1/servers/{server}")
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if self.http.get(f"/compute/v2.1/servers/{server}").status_code == 404:
                return
            time.sleep(0.05)
        raise TimeoutError(f"{server} was not deleted")
