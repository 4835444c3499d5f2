"""Whimbrel's own API: migrations as tables of steps, live, and the hosts with their room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from sqlalchemy import Connection

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import finding
from whimbrel.api.views import hosts as hosts_shown
from whimbrel.api.views import journal as view
from whimbrel.api.views.journal import Reader
from whimbrel.domain.errors import NotFound, Unavailable
from whimbrel.migration.messages import Progress
from whimbrel.store import hosts_view, moves
from whimbrel.store.moves import Search, Story

PING_SECONDS = 10.0
DEFAULT_LIMIT = 50


def _reader(call: Call) -> Reader:
    return Reader(hosts=finding.may(call, "whimbrel:migrations"))


async def index(call: Call) -> Reply:
    """List migrations of every kind, newest first: those of the caller's project, or all for an administrator."""
    every = finding.may(call, "whimbrel:migrations:all_projects")
    search = Search(
        server_id=call.first("server"),
        open=parameters.boolean(call, "open"),
        project_id=None if every else call.who.project_id or "-",
    )
    limit = parameters.limit(call) if "limit" in call.query else DEFAULT_LIMIT
    stories = await call.services.store.read(moves.named_page, search, limit)
    return Reply(body={"migrations": [_shown(call, story) for story in stories]})


async def show(call: Call) -> Reply:
    """Show one migration as its table."""
    return Reply(body={"migration": _shown(call, await _load(call))})


def _shown(call: Call, story: Story) -> dict[str, Any]:
    return view.migration(story, call.services.hub.newest(story.row.id, _hosts(story)), _reader(call))


def _hosts(story: Story) -> tuple[str | None, ...]:
    return story.row.source, story.row.target


async def _load(call: Call) -> Story:
    return await call.services.store.read(_find, call)


def _find(tx: Connection, call: Call) -> Story:
    wanted = call.params["id"]
    story = moves.story(tx, wanted)
    every = finding.may(call, "whimbrel:migrations:all_projects")
    if story is None or not (every or story.row.project_id == call.who.project_id):
        raise NotFound(f"Migration {wanted} could not be found.")
    return story


async def events(call: Call) -> Reply:
    """Tell how a migration goes while it goes, as server-sent events, until it rests."""
    story = await _load(call)
    if not call.services.hub.room():
        raise Unavailable("Too many clients are watching migrations; try again later, or ask now and then.")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Reply(200, headers=headers, stream=_watch(call, story), media_type="text/event-stream")


async def _watch(call: Call, story: Story) -> AsyncIterator[bytes]:
    """Read the truth again whenever something is said to have changed; a missed word is made up for by the ping."""
    reader = _reader(call)
    with call.services.hub.watch(story.row.id) as queue:
        story, shown = await _load(call), -1
        while True:
            if story.row.revision != shown:
                shown = story.row.revision
                yield _event("migration", {"migration": _shown(call, story)})
            if not story.row.open or (story.row.window_open and story.row.verdict is None):
                return
            try:
                word = await asyncio.wait_for(queue.get(), PING_SECONDS)
            except TimeoutError:
                yield b": ping\n\n"
                story = await _load(call)
                continue
            if word is None:
                return
            if isinstance(word, Progress):
                if word.host in _hosts(story):
                    yield _event("progress", view.progress_of(word, reader))
            else:
                story = await _load(call)


def _event(name: str, body: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"


async def hosts(call: Call) -> Reply:
    """List the hosts with what they have, what is claimed, and what is left."""
    found = await call.services.store.read(hosts_view.everything)
    since = finding.heard_since(call.services.settings)
    return Reply(body={"hosts": [hosts_shown.own(host, host.is_up(since)) for host in found]})
