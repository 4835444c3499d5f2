"""The API as a server hands it requests, one at a time and without a socket: any bytes may stand anywhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

LONGEST = 10.0


@dataclass
class Answer:
    """What came back. A stream is cut off after its first piece."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str:
        """Return a header's value, empty when it is not there."""
        return next((value for key, value in self.headers if key == name), "")


async def ask(app: Any, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Answer:
    """Send one request and return the answer; TimeoutError when there is none within 10 s."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8774),
    }
    answer = Answer()
    said = asyncio.Event()
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        await said.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        else:
            answer.body += message.get("body", b"")
            if answer.body or not message.get("more_body", False):
                said.set()

    await asyncio.wait_for(app(scope, receive, send), LONGEST)
    return answer
