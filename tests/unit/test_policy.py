"""The policy: the defaults say what the OpenStack releases say, changes are read, and what is wrong is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.api.routes import ROUTES
from whimbrel.domain.errors import Forbidden, SettingsError
from whimbrel.identity import policy
from whimbrel.identity.caller import Caller

NOVA = "os_compute_api:"


def caller(*roles: str, project: str | None = "p1", user: str = "u1") -> Caller:
    return Caller(user, "somebody", project, project, frozenset(roles))


@pytest.mark.parametrize(
    ("rule", "own", "foreign"),
    [
        ("servers:show", "admin manager member reader", "admin"),
        ("servers:create", "admin manager member", "admin"),
        ("servers:resize", "admin manager member", "admin"),
        ("servers:confirm_resize", "admin manager member", "admin"),
        ("os-migrate-server:migrate", "admin manager", "admin"),
        ("os-migrate-server:migrate:host", "admin", "admin"),
        ("os-migrations:index", "admin manager", "admin"),
        ("os-migrations:index:all_projects", "admin", "admin"),
        ("os-services:update", "admin", "admin"),
        ("limits", "admin manager member reader service", "admin manager member reader service"),
    ],
)
def test_who_may_do_what(rule: str, own: str, foreign: str) -> None:
    every = (*policy.ROLES, "stranger")
    active = policy.Policy()
    for target, allowed in (("p1", own), ("p2", foreign)):
        may = [role for role in every if active.allowed(NOVA + rule, caller(role), {"project_id": target})]
        expected = [role for role in every if role in allowed.split() or rule == "limits"]
        assert may == expected, (rule, target)


def test_a_missing_target_or_project_is_nobodys() -> None:
    active = policy.Policy()
    assert not active.allowed(NOVA + "servers:show", caller("member"), {})
    assert not active.allowed(NOVA + "servers:show", caller("member", project=None), {"project_id": None})


@pytest.mark.parametrize(
    ("sentence", "allowed"),
    [
        ("@", True),
        ("", True),
        ("!", False),
        ("not role:admin", True),
        ("role:admin or role:member and user_id:%(user_id)s", True),
        ("(role:admin or role:member) and !", False),
        ("not (role:member or role:admin)", False),
        ("role:reader", True),
        ("role:manager", False),
        ("rule:mine and project_id:%(project_id)s", True),
    ],
)
def test_the_language(sentence: str, allowed: bool) -> None:
    active = policy.Policy({"whimbrel:hosts": sentence, "mine": "user_id:%(user_id)s"})
    target = {"project_id": "p1", "user_id": "u1"}
    assert active.allowed("whimbrel:hosts", caller("member"), target) is allowed


@pytest.mark.parametrize(
    "changes",
    [
        {"whimbrel:hosts": "role:"},
        {"whimbrel:hosts": "role:a role:b"},
        {"whimbrel:hosts": "(role:a"},
        {"whimbrel:hosts": "role:a and"},
        {"whimbrel:hosts": "is_admin:True"},
        {"whimbrel:hosts": "project_id:p1"},
        {"whimbrel:hosts": "rule:nowhere"},
        {"whimbrel:host": "role:admin"},
        {"a": "rule:b", "b": "not rule:a"},
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        policy.Policy(changes)


def test_a_policy_file_replaces_single_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_active", policy.Policy())
    file = tmp_path / "policy.yaml"
    file.write_text('"os_compute_api:os-migrate-server:migrate": "role:mover"\n')
    policy.load(file)
    policy.enforce(NOVA + "os-migrate-server:migrate", caller("mover"), {"project_id": "p2"})
    with pytest.raises(Forbidden, match="Policy doesn't allow os_compute_api:os-migrate-server:migrate to be"):
        policy.enforce(NOVA + "os-migrate-server:migrate", caller("admin"), {"project_id": "p1"})
    assert policy.allowed(NOVA + "servers:show", caller("reader"), {"project_id": "p1"})
    file.write_text("- role:mover\n")
    with pytest.raises(SettingsError, match="mapping"):
        policy.load(file)


def test_every_route_names_a_rule_that_exists() -> None:
    policy.require_names(row.policy for row in ROUTES if row.policy is not None)
    with pytest.raises(KeyError):
        policy.require_names(["os_compute_api:servers:fly"])


def test_every_open_route_is_meant_to_be_open() -> None:
    opened = {(row.service, row.method, row.path) for row in ROUTES if row.public and row.service in SERVICES}
    assert opened == {
        ("identity", "GET", ""),
        ("identity", "GET", "/v3"),
        ("identity", "POST", "/v3/auth/tokens"),
        ("image", "GET", ""),
        ("image", "GET", "/versions"),
        ("image", "GET", "/v2/images/{id}/file"),
        ("network", "GET", ""),
        ("network", "GET", "/v2.0"),
    }


SERVICES = ("identity", "image", "network")
