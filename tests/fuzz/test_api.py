"""Requests made from the API's own description: whatever they hold, the answer is one that the description knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.core import NOT_SET

from tests.fuzz.crowd import Crowd, crowded
from tests.fuzz.wire import Answer
from whimbrel.api import description
from whimbrel.api.routes import ROUTES

LONGEST_TEXT = 600
"""Longer texts are not drawn, because drawing them takes all the time."""


def _shorter(schema: Any) -> Any:
    if isinstance(schema, dict):
        most = {"maxLength": min(schema["maxLength"], LONGEST_TEXT)} if "maxLength" in schema else {}
        return {key: _shorter(value) for key, value in schema.items()} | most
    return [_shorter(each) for each in schema] if isinstance(schema, list) else schema


DOCUMENT = description.document(ROUTES, "http://cloud.test")
OPERATIONS = [one.ok() for one in schemathesis.openapi.from_dict(_shorter(DOCUMENT)).get_all_operations()]
ERRORS = {
    name.removesuffix(".error"): Draft202012Validator(body)
    for name, body in DOCUMENT["components"]["schemas"].items()
    if name.endswith(".error")
}

PARAMETERS = (
    "limit", "marker", "sort_key", "sort_dir", "sort", "all_tenants", "name", "status", "deleted", "changes-since",
    "changes-before", "tags", "not-tags-any", "ip", "flavor", "image", "host", "project_id", "vm_state", "locked",
    "is_public", "minRam", "minDisk", "hypervisor_hostname_pattern", "with_servers", "instance_uuid", "hidden",
    "migration_type", "user_id", "tenant_id", "visibility", "size_min", "size_max", "size", "min_ram", "tag", "fields",
    "protected", "id", "enabled", "domain_id", "include_names", "open", "server", "ticket", "device_id",
    "reservation_id", "availability_zone", "power_state", "binary", "role.id", "scope.project.id", "page_reverse",
    'a"b', "a'b", "a.b[0]",
)  # fmt: skip
VALUES = (
    "", "0", "1", "-1", "1000000", "9" * 18, "9" * 40, "9" * 5000, "1e400", "NaN", "true", "False", "none", "asc",
    "desc", "created_at", "uuid", "name:asc", "nothing:up", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59", "2026-02-30", "ACTIVE", "DELETED", "^vm", "(", "[", "(a+)+$", "a" * 300, "(?P<a>.)",
    "\\", "\x00", "\r\nX-Injected: yes", "../../../etc/passwd", "%", "' OR 1=1 --", "𝒳", "٣", "cirros", "public", "all",
    "in:" + "a," * 50_000, ",".join(["name:asc"] * 2000),
)  # fmt: skip
VERSIONS = (None, "2.1", "2.26", "2.37", "2.56", "2.83", "2.100", "latest", "latest")
NASTY_NAMES = ("", "0", "-1", "9" * 30, "..", "%2e%2e", "a\x00b", "a\r\nX-Injected: yes", "é", "٣", "𝒳" * 200, "latest")
KINDS = {
    "flavors": "flavors", "images": "images", "networks": "networks", "ports": "ports", "users": "users",
    "projects": "projects", "os-services": "services", "os-hypervisors": "hypervisors", "migrations": "migrations",
    "flavorRef": "flavors", "imageRef": "images", "uuid": "networks", "host": "hosts", "tenant": "projects",
    "os-instance-actions": "requests", "roles": "roles", "servers": "servers", "os-quota-sets": "projects",
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """One cloud for the module: every example begins from the same rows."""
    with crowded(tmp_path_factory.mktemp("crowd")) as crowd:
        yield crowd


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.label)
@given(data=st.data())
def test_no_request_breaks_the_api_and_no_refusal_changes_anything(crowd: Crowd, operation: Any, data: Any) -> None:
    case = data.draw(operation.as_strategy(generation_mode=data.draw(st.sampled_from(GenerationMode))))
    who = data.draw(st.sampled_from(("admin", "admin", "admin", "alice", "alice", *crowd.tokens)))
    headers = _headers(crowd, case, who, data.draw(st.sampled_from(VERSIONS)))
    target = data.draw(targets(crowd, operation.path))
    body = data.draw(bodies(crowd, case))
    before = crowd.digest()
    try:
        answer = crowd.ask(operation.method.upper(), target, headers, body)
        _check(answer, operation.path.split("/")[1], (who, operation.method, target, headers, body[:2000]))
        if answer.status >= 400:
            assert crowd.digest() == before, f"{answer.status} for {operation.method} {target} {body!r} changed rows"
        if crowd.digest() != before:
            assert crowd.misfits() == []
    finally:
        if crowd.digest() != before:
            crowd.put_back()


@st.composite
def targets(draw: Any, crowd: Crowd, path: str) -> str:
    """Draw names for the path's parameters, most of them of things that are there, and query parameters."""
    words = path.split("/")
    for place, word in enumerate(words):
        if word.startswith("{"):
            known = crowd.names.get(KINDS.get(words[place - 1], ""), [])
            strange = st.sampled_from(NASTY_NAMES) | st.text(max_size=9)
            there = st.sampled_from([*known[:1] * len(known), *known]) if known else strange
            words[place] = quote(draw(there if draw(st.integers(0, 7)) else strange), safe="")
    pairs = draw(
        st.lists(
            st.tuples(st.sampled_from(PARAMETERS), st.one_of(st.sampled_from(VALUES), st.text(max_size=9))), max_size=3
        )
    )
    query = urlencode(pairs, errors="surrogatepass")
    return "/".join(words) + (f"?{query}" if query else "")


@st.composite
def bodies(draw: Any, crowd: Crowd, case: Any) -> bytes:
    """Draw the case's body, most often with names of things that are there, sometimes spoilt."""
    if case.body is NOT_SET:
        return draw(st.sampled_from((b"", b"", b"", b"{}", b"\xff", b"[" * 5000)))
    if isinstance(case.body, bytes):
        return case.body
    whole = json.dumps(_named(draw, crowd, case.body) if draw(st.integers(0, 3)) else case.body).encode()
    spoilt = draw(st.sampled_from((None,) * 16 + _spoilt(whole)))
    return whole if spoilt is None else spoilt


def _named(draw: Any, crowd: Crowd, value: Any) -> Any:
    if isinstance(value, list):
        return [_named(draw, crowd, each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: draw(st.sampled_from(crowd.names[KINDS[key]])) if key in KINDS else _named(draw, crowd, each)
        for key, each in value.items()
    }


def _spoilt(whole: bytes) -> tuple[bytes, ...]:
    deep = b"[" * 900 + b"]" * 900
    return (
        b"", b"\x00", whole[:-1], whole + b"}", whole * 2, b"[" * 100_000, deep, b'{"server":' + deep + b"}",
        b"9" * 5000, whole.replace(b'"', b"", 1), whole.replace(b'": ', b'": ' + b"9" * 400 + b", ", 1),
        whole.replace(b'": "', b'": "\\u0000'), whole.replace(b'": "', b'": "\xed\xa0\x80', 1),
    )  # fmt: skip


def _headers(crowd: Crowd, case: Any, who: str, version: str | None) -> list[tuple[bytes, bytes]]:
    token = crowd.tokens[who]
    headers = [(b"content-type", (case.media_type or "application/json").encode())]
    if token is not None:
        headers.append((b"x-auth-token", token.encode("latin-1")))
    version = version or (case.headers or {}).get("X-OpenStack-Nova-API-Version")
    if version is not None:
        headers.append((b"x-openstack-nova-api-version", str(version).encode("latin-1", "replace")))
    return headers


def _check(answer: Answer, service: str, about: object) -> None:
    """Fail unless this is an answer that the description promises."""
    assert answer.status < 500 or (answer.status == 503 and answer.header("retry-after")), (about, answer)
    assert b"Traceback" not in answer.body and b"internal error" not in answer.body, (about, answer)
    assert answer.header("x-openstack-request-id").startswith("req-"), (about, answer)
    assert all("\r" not in value and "\n" not in value for _, value in answer.headers), (about, answer.headers)
    media_type = answer.header("content-type")
    if answer.status == 204 or not answer.body:
        assert answer.status in (200, 201, 202, 204), (about, answer)
    elif service == "image" and answer.status >= 400:
        assert media_type.startswith("text/html"), (about, answer)
    elif media_type == "application/json":
        content = json.loads(answer.body)
        if answer.status >= 400:
            ERRORS[service if service in ERRORS else "whimbrel"].validate(content)
    else:
        assert media_type.partition(";")[0] in ("application/octet-stream", "text/event-stream", "text/plain"), about
