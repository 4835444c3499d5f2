"""Puts into a fresh lab what a user needs to try it: the guest image and two flavors, through the public API."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import yaml

from whimbrel.domain.errors import Unavailable
from whimbrel.lab.processes import wait_until

IMAGE_NAME = "whimbrel-guest"
FLAVORS = {"small": {"vcpus": 1, "ram": 128, "disk": 1}, "medium": {"vcpus": 1, "ram": 192, "disk": 2}}
API_DEADLINE = 90.0
AGENTS_DEADLINE = 90.0


class Seeder:
    """A client of the lab's API as its administrator."""

    def __init__(self, url: str, clouds_yaml: Path) -> None:
        cloud = yaml.safe_load(clouds_yaml.read_text())["clouds"]["admin"]
        self._auth = cloud["auth"]
        known = ssl.create_default_context(cafile=cloud.get("cacert"))
        self._http = httpx2.Client(base_url=url, timeout=30, trust_env=False, verify=known)

    def __enter__(self) -> Seeder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def wait_for_api(self) -> None:
        """Wait until the API answers, 90 s at most, and log in; raise Unavailable."""
        if not wait_until(self._answers, API_DEADLINE):
            raise Unavailable(
                f"The API did not answer at {self._http.base_url} within {API_DEADLINE:g} s; see `whimbrel lab logs`."
            )
        domain = {"name": "Default"}
        user = {"name": self._auth["username"], "password": self._auth["password"], "domain": domain}
        scope = {"project": {"name": self._auth["project_name"], "domain": domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        answer = self._http.post("/identity/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
        self._check(answer)
        self._http.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]

    def wait_for_agents(self, hosts: list[str]) -> None:
        """Wait until all hosts are reported up, 90 s at most; raise Unavailable naming those that are not."""
        missing = set(hosts)

        def all_up() -> bool:
            services = self._call("GET", "/compute/v2.1/os-services")["services"]
            up = {s["host"] for s in services if s["binary"] == "nova-compute" and s["state"] == "up"}
            missing.difference_update(up)
            return not missing

        if not wait_until(all_up, AGENTS_DEADLINE):
            names = ", ".join(sorted(missing))
            raise Unavailable(f"No word from the agents of {names}; see `whimbrel lab logs agent@HOST`.")

    def upload_image(self, path: Path) -> None:
        """Upload the guest image under its name."""
        body = {
            "name": IMAGE_NAME,
            "disk_format": "qcow2",
            "container_format": "bare",
            "visibility": "public",
            "min_disk": 1,
        }
        image = self._call("POST", "/image/v2/images", json=body)
        with path.open("rb") as content:
            kind = {"Content-Type": "application/octet-stream"}
            self._check(self._http.put(f"/image/v2/images/{image['id']}/file", content=content, headers=kind))

    def make_flavors(self) -> None:
        """Make the flavors."""
        for name, size in FLAVORS.items():
            self._call("POST", "/compute/v2.1/flavors", json={"flavor": {"name": name, **size}})

    def _answers(self) -> bool:
        try:
            return self._http.get("/identity/v3").status_code < 500
        except httpx2.TransportError:
            return False

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self._http.request(method, path, **arguments)
        self._check(answer)
        body: dict[str, Any] = answer.json()
        return body

    def _check(self, answer: httpx2.Response) -> None:
        if answer.is_error:
            request = answer.request
            raise Unavailable(f"{request.method} {request.url.path} answered {answer.status_code}: {answer.text[:300]}")
