"""A client of the OpenStack APIs, and of Whimbrel's own beside them: log in, find the endpoints, ask."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx2
import msgspec

from whimbrel.cli.documents import Migration
from whimbrel.cli.login import Login
from whimbrel.domain.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    RequestError,
    SettingsError,
    Unauthorized,
    Unavailable,
)

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
MICROVERSION = "compute 2.56"
"""The first one that knows a migration's target host; it shows a server's flavor by name, too."""
MAX_ERROR_CHARACTERS = 400

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_REFUSALS: dict[int, type[RequestError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict}


class Cloud:
    """A session with one cloud. The token is fetched at the first request, and again when it has expired."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._token = ""
        self._endpoints: dict[str, str] = {}
        try:
            known = ssl.create_default_context(cafile=login.verify) if isinstance(login.verify, str) else login.verify
            self._http = httpx2.Client(
                verify=known,
                timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
                trust_env=not login.direct,
            )
        except OSError as error:
            raise SettingsError(f"Cannot use the CA file {login.verify} of {login.origin}: {error}.") from error

    def __enter__(self) -> Cloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --- requests ---------------------------------------------------------------------------------

    def get(self, service: str, path: str, **query: str | int) -> Any:
        """Return the JSON answer; raise the RequestError that the status means, or Unavailable."""
        answer = self._send("GET", service, path, params={key: str(value) for key, value in query.items()})
        return _json(answer)

    def post(self, service: str, path: str, body: dict[str, Any]) -> Any:
        """Send a JSON body and return the JSON answer, None when there is none; raises as `get` does."""
        answer = self._send("POST", service, path, json=body)
        return _json(answer) if answer.content else None

    def put(self, service: str, path: str, body: dict[str, Any]) -> None:
        """Send a JSON body where nothing comes back; raises as `get` does."""
        self._send("PUT", service, path, json=body)

    def delete(self, service: str, path: str) -> None:
        """Ask for something to go or to end; raises as `get` does."""
        self._send("DELETE", service, path)

    @contextmanager
    def stream(self, service: str, path: str, silence: float) -> Iterator[Iterator[str]]:
        """Give the lines of an event stream as they come; Unavailable when it breaks or is silent too long (s)."""
        timeout = httpx2.Timeout(silence, connect=CONNECT_SECONDS)
        answer = self._send("GET", service, path, timeout=timeout, stream=True)
        try:
            yield _lines(answer)
        finally:
            answer.close()

    def _send(self, method: str, service: str, path: str, *, stream: bool = False, **arguments: Any) -> httpx2.Response:
        for last in (False, True):
            if not self._token:
                self._log_in()
            request = self._http.build_request(
                method,
                self._endpoint(service) + path,
                headers={"X-Auth-Token": self._token, "OpenStack-API-Version": MICROVERSION},
                **arguments,
            )
            answer = self._transmit(request, stream=stream)
            if answer.status_code != 401 or last:
                break
            self._token = ""  # it has expired while we watched
        if answer.is_error:
            answer.read()
            raise _refusal(answer)
        return answer

    def _transmit(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        url = request.url
        try:
            return self._http.send(request, stream=stream)
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{url.host} did not answer in time; look whether the API at {url} is well.") from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise Unavailable(
                f"Cannot reach {url}: {error}. Look whether the API runs, and at the auth_url of {self._login.origin}."
            ) from error

    def _log_in(self) -> None:
        try:
            request = self._http.build_request("POST", self._login.tokens_url, json=self._login.request())
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise SettingsError(f"The auth_url of {self._login.origin} is not a URL: {error}.") from error
        answer = self._transmit(request)
        if answer.status_code == 401:
            raise Unauthorized(f"The login was refused; check the user and the password of {self._login.origin}.")
        if answer.is_error:
            raise _refusal(answer)
        token = _json(answer)["token"]
        self._token = answer.headers["X-Subject-Token"]
        self._endpoints = _endpoints(token.get("catalog", []), self._login.interface, self._login.region)

    def _endpoint(self, service: str) -> str:
        """Return the base URL of a service, from the catalog; Whimbrel's own lies beside compute's."""
        if service == "whimbrel" and service not in self._endpoints:
            return _beside(self._endpoint("compute"))
        if service not in self._endpoints:
            region = f" in region {self._login.region}" if self._login.region else ""
            raise SettingsError(
                f"The catalog has no {self._login.interface} {service} endpoint{region}; "
                f"check the project, the region and the interface of {self._login.origin}."
            )
        return self._endpoints[service]

    # --- things -----------------------------------------------------------------------------------

    def server(self, name_or_id: str) -> dict[str, Any]:
        """Return a server by its id or its name; an administrator's name may mean any project's server."""
        if _UUID.fullmatch(name_or_id):
            found: dict[str, Any] = self.get("compute", f"/servers/{name_or_id.lower()}")["server"]
            return found
        matches = self._servers_named(name_or_id)
        if not matches:
            try:
                matches = self._servers_named(name_or_id, all_tenants=1)
            except Forbidden:
                matches = []  # not an administrator: there is only the own project
        if not matches:
            raise NotFound(f"There is no server {name_or_id}; `whimbrel servers` lists them.")
        if len(matches) > 1:
            ids = ", ".join(server["id"] for server in matches)
            raise Conflict(f"{len(matches)} servers have the name {name_or_id}; use an id: {ids}.")
        return matches[0]

    def flavor(self, name_or_id: str) -> dict[str, Any]:
        """Return a flavor by its id or its name."""
        flavors: list[dict[str, Any]] = self.get("compute", "/flavors/detail")["flavors"]
        for flavor in flavors:
            if name_or_id in (flavor["id"], flavor["name"]):
                return flavor
        names = ", ".join(flavor["name"] for flavor in flavors)
        raise NotFound(f"There is no flavor {name_or_id}; there are {names or 'none'}.")

    def act(self, server_id: str, action: dict[str, Any]) -> None:
        """Ask for an action on a server, as `{"migrate": None}`."""
        self.post("compute", f"/servers/{server_id}/action", action)

    def migration(self, id_or_uuid: int | str) -> Migration:
        """Return one migration with its whole journal."""
        return migration_of(self.get("whimbrel", f"/migrations/{id_or_uuid}")["migration"])

    def newest_migration(self, server_id: str) -> Migration | None:
        """Return the server's migration that is open, else its newest; None when it never had one."""
        for query in ({"open": "true"}, {}):
            rows = self.get("whimbrel", "/migrations", server=server_id, limit=1, **query)["migrations"]
            if rows:
                return self.migration(rows[0]["id"])
        return None

    def find_migration(self, name: str) -> Migration:
        """Return the migration that a number, a migration's uuid, or a server's id or name stands for."""
        if name.isdecimal():
            return self.migration(int(name))
        if _UUID.fullmatch(name):
            try:
                return self.migration(name.lower())
            except NotFound:
                pass  # then it is a server's
        server = self.server(name)
        found = self.newest_migration(server["id"])
        if found is None:
            raise NotFound(f"Server {server['name']} was never migrated.")
        return found

    def _servers_named(self, name: str, **query: int) -> list[dict[str, Any]]:
        pattern = f"^{re.escape(name)}$"
        rows = self.get("compute", "/servers/detail", name=pattern, **query)["servers"]
        return [row for row in rows if row["name"] == name]


def migration_of(document: Any) -> Migration:
    """Check a migration's document; Unavailable when it has another shape than this release knows."""
    try:
        return msgspec.convert(document, Migration)
    except msgspec.ValidationError as error:
        raise Unavailable(f"The API's answer is not what this release expects: {error}.") from error


def _endpoints(catalog: list[dict[str, Any]], interface: str, region: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for service in catalog:
        for endpoint in service.get("endpoints", []):
            if endpoint["interface"] != interface or region not in (None, endpoint.get("region")):
                continue
            found.setdefault(service["type"], endpoint["url"].rstrip("/"))
    return found


def _beside(compute: str) -> str:
    """Return the root of Whimbrel's own API on the server that has the compute API."""
    root = re.sub(r"/compute(/v2(\.1)?)?$", "", compute)
    return f"{root}/whimbrel/v1"


def _lines(answer: httpx2.Response) -> Iterator[str]:
    try:
        yield from answer.iter_lines()
    except httpx2.TransportError as error:
        raise Unavailable(f"The connection to {answer.request.url.host} broke: {error}.") from error


def _json(answer: httpx2.Response) -> Any:
    try:
        return msgspec.json.decode(answer.content)
    except msgspec.DecodeError as error:
        raise Unavailable(f"{answer.request.url} answered something that is not JSON; is it the right URL?") from error


def _refusal(answer: httpx2.Response) -> RequestError | Unavailable:
    """Make an error status the error that it means, in the API's own words."""
    text = _message(answer)
    if answer.status_code >= 500:
        return Unavailable(f"The API failed with {answer.status_code}: {text}")
    return _REFUSALS.get(answer.status_code, Invalid)(text)


def _message(answer: httpx2.Response) -> str:
    """Each service wraps its message in a word of its own: {"itemNotFound": {"message": ...}}."""
    try:
        body = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        body = None
    for value in body.values() if isinstance(body, dict) else ():
        if isinstance(value, dict) and isinstance(value.get("message"), str):
            return str(value["message"])[:MAX_ERROR_CHARACTERS]
    return f"{answer.request.method} {answer.request.url.path} was answered with {answer.status_code}."
