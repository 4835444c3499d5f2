"""The identity service: who gets a token, what a token is worth and for how long, and who may look after whom."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner

from tests.unit.cloud import PASSWORD, URL, Cloud
from whimbrel.cli.bootstrap import bootstrap
from whimbrel.domain.errors import SettingsError, Unauthorized, Unavailable
from whimbrel.identity import passwords
from whimbrel.identity.caller import Caller
from whimbrel.identity.passwords import Passwords
from whimbrel.identity.tokens import Tokens
from whimbrel.ops import clock
from whimbrel.store import identity, networks, schema
from whimbrel.store.engine import Store

DEMO = {"project": {"name": "demo", "domain": {"name": "Default"}}}
ALICE = Caller("u1", "alice", "p1", "demo", frozenset({"member"}))


# --- tokens and passwords -------------------------------------------------------------------------


def test_a_token_says_who_it_was_given_to_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(tmp_path / "keys", 60)
    token, data = tokens.issue(ALICE, ("password",))
    assert tokens.verify(token) == ALICE
    assert Tokens(tmp_path / "keys", 60).verify(token) == ALICE, "another process reads the same keys"
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: data.expires_at - 0.1)
    assert tokens.verify(token) == ALICE
    monkeypatch.setattr(clock, "now", lambda: data.expires_at)
    with pytest.raises(Unauthorized):
        tokens.verify(token)
    monkeypatch.setattr(clock, "now", lambda: now)
    assert tokens.issue(ALICE, ("token",), not_after=now + 5)[1].expires_at == now + 5


def test_what_is_not_a_token_is_refused(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "keys", 60)
    token, _ = tokens.issue(ALICE, ("password",))
    changed = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    foreign, _ = Tokens(tmp_path / "others", 60).issue(ALICE, ("password",))
    for text in ("", "x", "é", "=" * 40, changed, foreign, token * 100, tokens.ticket("i1")):
        with pytest.raises(Unauthorized):
            tokens.verify(text)


def test_a_ticket_is_for_one_image_and_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(tmp_path / "keys", 60)
    ticket = tokens.ticket("i1", lifetime=10)
    assert tokens.verify_ticket(ticket) == "i1"
    with pytest.raises(Unauthorized):
        tokens.verify_ticket(tokens.issue(ALICE, ("password",))[0])
    later = clock.now() + 11
    monkeypatch.setattr(clock, "now", lambda: later)
    with pytest.raises(Unauthorized):
        tokens.verify_ticket(ticket)


def test_an_older_key_still_opens(tmp_path: Path) -> None:
    old = Tokens(tmp_path / "keys", 60).issue(ALICE, ("password",))[0]
    Tokens(tmp_path / "new", 60)
    (tmp_path / "keys").write_bytes((tmp_path / "new").read_bytes() + (tmp_path / "keys").read_bytes())
    rotated = Tokens(tmp_path / "keys", 60)
    assert rotated.verify(old) == ALICE
    assert Tokens(tmp_path / "new", 60).verify(rotated.issue(ALICE, ("password",))[0]) == ALICE
    (tmp_path / "keys").write_text("not a key\n")
    with pytest.raises(SettingsError, match="keys"):
        Tokens(tmp_path / "keys", 60)


@pytest.mark.anyio
async def test_passwords_are_checked_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    check = passwords.matches_now

    def counted(password: str, stored: str) -> bool:
        checked.append(password)
        return check(password, stored)

    monkeypatch.setattr(passwords, "matches_now", counted)
    keeper = Passwords()
    stored = await keeper.hash("good")
    assert stored.startswith("$argon2id$") and "good" not in stored
    assert await keeper.matches("good", stored)
    assert await keeper.matches("good", stored)
    assert not await keeper.matches("bad", stored)
    assert not await keeper.matches("good", None), "an unknown user costs the same check"
    assert checked == ["good", "bad", "good"]
    later = clock.monotonic() + passwords.REMEMBER_SECONDS
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    assert await keeper.matches("good", stored)
    assert len(checked) == 4


@pytest.mark.anyio
async def test_a_login_storm_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "WAITING_MAX", 2)
    monkeypatch.setattr(passwords, "matches_now", lambda password, stored: False)
    keeper = Passwords()
    answers: list[Any] = []

    async def knock() -> None:
        try:
            answers.append(await keeper.matches("x", None))
        except Unavailable:
            answers.append("503")

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(knock)
    assert sorted(map(str, answers)) == ["503", "503", "503", "False", "False"]


# --- logging in -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_logging_in_for_a_project(cloud: Cloud) -> None:
    answer = await cloud.login("alice", scope=DEMO)
    assert answer.status_code == 201
    assert cloud.services.tokens.verify(answer.headers["X-Subject-Token"]) == cloud.caller("alice")
    token = answer.json()["token"]
    assert token["methods"] == ["password"]
    assert token["user"] == {
        "id": cloud.caller("alice").user_id,
        "name": "alice",
        "domain": {"id": "default", "name": "Default"},
        "password_expires_at": None,
    }
    assert token["project"]["name"] == "demo" and token["is_domain"] is False
    assert [role["name"] for role in token["roles"]] == ["member", "reader"]
    assert {entry["type"] for entry in token["catalog"]} == {"identity", "compute", "image", "network", "placement"}
    compute = next(entry for entry in token["catalog"] if entry["type"] == "compute")
    assert {point["url"] for point in compute["endpoints"]} == {f"{URL}/compute/v2.1"}
    assert [point["interface"] for point in compute["endpoints"]] == ["public", "internal", "admin"]


@pytest.mark.anyio
async def test_logins_that_are_refused_all_look_the_same(cloud: Cloud) -> None:
    refused = [
        await cloud.login("alice", "wrong", scope=DEMO),
        await cloud.login("nobody", scope=DEMO),
        await cloud.login("bob", scope=DEMO),
        await cloud.login("alice", scope={"project": {"name": "nowhere", "domain": {"id": "default"}}}),
        await cloud.login("alice", scope={"project": {"name": "demo", "domain": {"id": "elsewhere"}}}),
        await cloud.login("alice", scope={"system": {"all": True}}),
    ]
    for answer in refused:
        assert answer.status_code == 401
        assert answer.json()["error"]["title"] == "Unauthorized"
        assert "X-Subject-Token" not in answer.headers
    assert refused[0].json() == refused[1].json()
    assert refused[2].json() == refused[3].json()


@pytest.mark.anyio
async def test_a_disabled_user_cannot_log_in(cloud: Cloud) -> None:
    admin, alice = cloud.token("admin"), cloud.caller("alice").user_id
    answer = await cloud.http.patch(f"/identity/v3/users/{alice}", json={"user": {"enabled": False}}, headers=admin)
    assert answer.json()["user"]["enabled"] is False
    assert (await cloud.login("alice", scope=DEMO)).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize("body", [{}, [], {"auth": {}}, {"auth": {"identity": {"methods": "password"}}}])
async def test_a_login_without_sense_is_a_400(cloud: Cloud, body: Any) -> None:
    answer = await cloud.http.post("/identity/v3/auth/tokens", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400


@pytest.mark.anyio
async def test_an_unscoped_token_opens_nothing_but_can_be_scoped(cloud: Cloud) -> None:
    answer = await cloud.login("alice")
    assert answer.status_code == 201 and not {"project", "roles", "catalog"} & set(answer.json()["token"])
    unscoped = answer.headers["X-Subject-Token"]
    assert (await cloud.http.get("/image/v2/images", headers={"X-Auth-Token": unscoped})).status_code == 403
    mine = await cloud.http.get("/identity/v3/auth/projects", headers={"X-Auth-Token": unscoped})
    assert [project["name"] for project in mine.json()["projects"]] == ["demo"]
    identity = {"methods": ["token"], "token": {"id": unscoped}}
    again = await cloud.http.post("/identity/v3/auth/tokens", json={"auth": {"identity": identity, "scope": DEMO}})
    assert again.status_code == 201
    assert again.json()["token"]["methods"] == ["password", "token"]
    assert again.json()["token"]["expires_at"] == answer.json()["token"]["expires_at"], "no token outlives its proof"


@pytest.mark.anyio
async def test_tokens_are_validated_by_their_owner_and_administrators(cloud: Cloud) -> None:
    alice, rita, admin = (cloud.token(name) for name in ("alice", "rita", "admin"))
    subject = {"X-Subject-Token": alice["X-Auth-Token"]}
    for who, status in ((alice, 200), (admin, 200), (rita, 403)):
        answer = await cloud.http.get("/identity/v3/auth/tokens", headers={**who, **subject})
        assert answer.status_code == status
    assert answer.json()["error"]["code"] == 403
    head = await cloud.http.head("/identity/v3/auth/tokens", headers={**alice, **subject})
    assert head.status_code == 200
    answer = await cloud.http.get("/identity/v3/auth/tokens", headers={**admin, "X-Subject-Token": "junk"})
    assert answer.status_code == 404


@pytest.mark.anyio
async def test_discovery_needs_no_token(cloud: Cloud) -> None:
    for path in ("/identity", "/identity/"):
        answer = await cloud.http.get(path)
        assert answer.status_code == 300
        assert answer.json()["versions"]["values"][0]["links"] == [{"rel": "self", "href": f"{URL}/identity/v3/"}]
    assert (await cloud.http.get("/identity/v3")).json()["version"]["status"] == "stable"
    assert (await cloud.http.get("/identity/v3/projects")).status_code == 401


# --- projects, users and roles --------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_administrator_makes_a_user_who_then_logs_in(cloud: Cloud) -> None:
    http, admin = cloud.http, cloud.token("admin")
    made = await http.post("/identity/v3/projects", json={"project": {"name": "new"}}, headers=admin)
    project = made.json()["project"]
    new = {"name": "nina", "password": "secret", "email": "nina@example.org", "domain_id": "default"}
    made = await http.post("/identity/v3/users", json={"user": new}, headers=admin)
    user = made.json()["user"]
    assert made.status_code == 201 and "password" not in user
    again = await http.post("/identity/v3/users", json={"user": new}, headers=admin)
    assert again.status_code == 409
    scope = {"project": {"id": project["id"]}}
    assert (await cloud.login("nina", "secret", scope=scope)).status_code == 401
    roles = (await http.get("/identity/v3/roles?name=member", headers=admin)).json()["roles"]
    grant = f"/identity/v3/projects/{project['id']}/users/{user['id']}/roles/{roles[0]['id']}"
    for _ in range(2):
        assert (await http.put(grant, headers=admin)).status_code == 204
    assert (await cloud.login("nina", "secret", scope=scope)).status_code == 201
    listed = await http.get(f"/identity/v3/role_assignments?include_names=1&user.id={user['id']}", headers=admin)
    (one,) = listed.json()["role_assignments"]
    assert (one["role"]["name"], one["scope"]["project"]["name"]) == ("member", "new")
    assert (await http.delete(grant, headers=admin)).status_code == 204
    assert (await http.delete(grant, headers=admin)).status_code == 404
    for path in (f"users/{user['id']}", f"projects/{project['id']}"):
        assert (await http.delete(f"/identity/v3/{path}", headers=admin)).status_code == 204
        assert (await http.get(f"/identity/v3/{path}", headers=admin)).status_code == 404


@pytest.mark.anyio
async def test_others_see_only_themselves(cloud: Cloud) -> None:
    alice, bob, mine = cloud.caller("alice"), cloud.caller("bob"), cloud.token("alice")
    statuses = {
        f"users/{alice.user_id}": 200,
        f"users/{bob.user_id}": 403,
        f"users/{alice.user_id}/projects": 200,
        f"users/{bob.user_id}/projects": 403,
        f"projects/{alice.project_id}": 200,
        f"projects/{bob.project_id}": 403,
        "users": 403,
        "projects": 403,
        "role_assignments": 403,
        "auth/catalog": 200,
    }
    for path, status in statuses.items():
        answer = await cloud.http.get(f"/identity/v3/{path}", headers=mine)
        assert answer.status_code == status, path
    answer = await cloud.http.post("/identity/v3/projects", json={"project": {"name": "x"}}, headers=mine)
    assert answer.status_code == 403


@pytest.mark.anyio
async def test_lists_are_found_by_name(cloud: Cloud) -> None:
    admin = cloud.token("admin")
    for path, names in (
        ("projects?name=demo", ["demo"]),
        ("projects?name=demo&domain_id=other", []),
        ("projects", ["admin", "demo", "other"]),
        ("users?name=bob", ["bob"]),
        ("domains?name=Default", ["Default"]),
        ("roles", ["admin", "manager", "member", "reader", "service"]),
        ("services?type=compute", ["nova"]),
    ):
        noun = path.partition("?")[0]
        answer = await cloud.http.get(f"/identity/v3/{path}", headers=admin)
        assert [item["name"] for item in answer.json()[noun]] == names, path
    assert (await cloud.http.get("/identity/v3/projects/demo", headers=admin)).status_code == 404


@pytest.mark.anyio
async def test_a_project_that_owns_an_image_stays(cloud: Cloud) -> None:
    alice, admin = cloud.caller("alice"), cloud.token("admin")
    await cloud.http.post("/image/v2/images", json={"name": "x"}, headers=cloud.token("alice"))
    answer = await cloud.http.delete(f"/identity/v3/projects/{alice.project_id}", headers=admin)
    assert answer.status_code == 409 and "images" in answer.json()["error"]["message"]


# --- the beginning --------------------------------------------------------------------------------


def test_bootstrap_makes_what_is_missing_and_can_run_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/db.sqlite"
    config, file = tmp_path / "whimbrel.toml", tmp_path / "begin.json"
    config.write_text(f'[database]\nurl = "{url}"\n')
    user = {"name": "admin", "password": PASSWORD, "project": "admin", "roles": ["admin"]}
    network = {"name": "private", "cidr": "10.99.0.0/24", "mtu": 1450}
    file.write_text(json.dumps({"projects": ["admin", "demo"], "users": [user], "network": network}))
    store = Store(url)
    schema.upgrade(store)

    def run() -> str:
        result = CliRunner().invoke(bootstrap, ["--config", str(config), "--file", str(file)])
        assert result.exit_code == 0, result.output
        return result.output

    assert run().count("\n") == 5
    assert run() == ""
    user |= {"password": "another", "roles": ["admin", "member"]}
    file.write_text(json.dumps({"projects": ["admin"], "users": [user], "network": network}))
    assert "new password" in run()
    (row,) = store.read_now(identity.list_users)
    assert passwords.matches_now("another", row.password)
    (link,) = store.read_now(lambda tx: networks.list_networks(tx, None))
    assert (link.gateway, link.mtu) == ("10.99.0.1", 1450)
    file.write_text(json.dumps({"projects": ["admin"], "users": [{**user, "roles": ["king"]}]}))
    result = CliRunner().invoke(bootstrap, ["--config", str(config), "--file", str(file)])
    assert isinstance(result.exception, SettingsError) and "king" in str(result.exception)
    store.close()
