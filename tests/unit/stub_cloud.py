"""A cloud that says what a test has told it to say, over real sockets: identity, compute, and Whimbrel's own API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from whimbrel.migration.protocols import PROTOCOLS

SERVER = "11111111-2222-4333-8444-555555555555"
BEGAN, ENDED = "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:01.000000Z"


def migration(*marks: str, protocol: str = "cold", number: int = 17, **more: Any) -> dict[str, Any]:
    """Return a migration's document whose first steps have these marks."""
    steps = []
    for index, row in enumerate(PROTOCOLS[protocol].steps):
        mark = marks[index] if index < len(marks) else None
        ended = mark is not None and mark != "doing"
        host = {"source": "h1", "target": "h2"}.get(row.where)
        steps.append(
            {"step": row.name, "where": row.where, "host": host, "mark": mark, "why": row.why, "reason": None,
             "tries": 1, "started_at": BEGAN if mark else None, "ended_at": ENDED if ended else None,
             "seconds": 1.0 if ended else None}
        )  # fmt: skip
    segment = {"protocol": protocol, "version": 1, "attempts": [{"attempt": 1, "target": "h2", "steps": steps}]}
    document = {
        "id": number, "uuid": "aaaaaaaa-0000-4000-8000-000000000017", "server_id": SERVER, "server_name": "vm1",
        "kind": "migration", "action": None, "status": "migrating", "source": "h1", "target": "h2", "attempt": 1,
        "segment": 0, "outcome": None, "reason": None, "request_id": "req-1", "fence": None, "window_closes_at": None,
        "was_running": True, "created_at": BEGAN, "finished_at": None, "targets": [{"host": "h2", "weight": 1.5}],
        "refusals": [{"host": "h1", "filter": "NotSource", "reason": "It is the source."}], "segments": [segment],
        "progress": None,
    }  # fmt: skip
    document |= more
    return document | {
        "open": document["outcome"] is None,
        "window_open": document["status"] == "finished",
        "verdict": {"confirming": "confirm", "reverting": "revert"}.get(document["status"]),
        "needs_fence": document["fence"] is not None,
    }


def with_segment(document: dict[str, Any], protocol: str, *marks: str, **more: Any) -> dict[str, Any]:
    """Return the document with one more segment, which has become the current one."""
    longer = deepcopy(document)
    longer["segments"] += migration(*marks, protocol=protocol)["segments"]
    return longer | {"segment": len(longer["segments"]) - 1, "open": "outcome" not in more} | more


ALL_DONE = ["done"] * len(PROTOCOLS["cold"].steps)
IN_WINDOW = migration(*ALL_DONE, status="finished")


@dataclass
class Stub:
    """What the cloud knows and was asked. `story` is played to a watcher state by state; "cut" breaks the line."""

    url: str = ""
    servers: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"id": SERVER, "name": "vm1", "status": "ACTIVE", "flavor": {"original_name": "small"}}
        ]
    )
    story: list[Any] = field(default_factory=lambda: [IN_WINDOW])
    now: dict[str, Any] = field(default_factory=lambda: migration("done", "doing"))
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    catalog: dict[str, str] = field(default_factory=lambda: {"compute": "/compute/v2.1"})
    hosts: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    expire: bool = False
    logins: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        """Return the OS_* variables that lead here."""
        return {
            "OS_AUTH_URL": f"{self.url}/identity", "OS_USERNAME": "admin", "OS_PASSWORD": "secret",
            "OS_PROJECT_NAME": "admin", "NO_PROXY": "*",
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/auth/tokens"):
            self._log_in(body)
        else:
            self.stub.headers.append(dict(self.headers))
            action = next(iter(body))
            if action in self.stub.refuse:
                status, message = self.stub.refuse[action]
                self._say(status, {"conflictingRequest": {"code": status, "message": message}})
            elif self.path == f"/whimbrel/v1/servers/{SERVER}/plan":
                self.stub.plan["of"] = body
                self._say(200, {"plan": self.stub.plan})
            else:
                self.stub.actions.append(body)
                self._say(202, None)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.stub.expire:
            self.stub.expire = False
            self._say(401, {"error": {"code": 401, "message": "The token is not valid."}})
        elif parts.path.endswith("/events"):
            self._play()
        elif parts.path.startswith("/whimbrel/v1/migrations"):
            self._migrations(parts.path, query)
        elif parts.path == "/compute/v2.1/servers/detail":
            found = [row for row in self.stub.servers if query.get("name") in (None, f"^{row['name']}$")]
            self._say(200, {"servers": found})
        elif parts.path.startswith("/compute/v2.1/servers/"):
            self._say(200, {"server": self.stub.servers[0]})
        elif parts.path == "/compute/v2.1/flavors/detail":
            self._say(200, {"flavors": [{"id": "f-1", "name": "small"}, {"id": "f-2", "name": "medium"}]})
        elif parts.path == "/whimbrel/v1/hosts":
            self._say(200, {"hosts": self.stub.hosts})
        else:
            self._say(404, {"error": {"code": 404, "message": "Not here."}})

    def _log_in(self, body: Any) -> None:
        self.stub.logins.append(body)
        user = body["auth"]["identity"]["password"]["user"]
        if user["password"] != "secret":
            self._say(401, {"error": {"code": 401, "message": "No."}})
            return
        catalog = [
            {"type": kind, "endpoints": [{"interface": "public", "region": "R", "url": self.stub.url + path}]}
            for kind, path in self.stub.catalog.items()
        ]
        self._say(201, {"token": {"catalog": catalog}}, {"X-Subject-Token": f"t{len(self.stub.logins)}"})

    def _migrations(self, path: str, query: dict[str, str]) -> None:
        now = self.stub.now
        if path == "/whimbrel/v1/migrations":
            hidden = query.get("open") == "true" and now["outcome"] is not None
            self._say(200, {"migrations": [] if hidden else [now]})
        elif path.rsplit("/", 1)[1] in (str(now["id"]), now["uuid"]):
            self._say(200, {"migration": now})
        else:
            self._say(404, {"error": {"code": 404, "message": "There is no such migration."}})

    def _play(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while self.stub.story:
            state = self.stub.story.pop(0)
            if state == "cut":
                return
            self.wfile.write(b": still here\n\n")
            kind = "migration" if "segments" in state else "progress"
            if kind == "migration":
                self.stub.now, state = state, {"migration": state}
            self.wfile.write(f"event: {kind}\ndata: {json.dumps(state)}\n\n".encode())
            self.wfile.flush()

    def _say(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Stub]:
    """Run a stub until the test is over."""
    stub = Stub()
    handler = type("Handler", (_Handler,), {"stub": stub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
