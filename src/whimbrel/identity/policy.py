"""Who may do what: one table of rules with OpenStack's names, and a small policy language to change them with.

A rule is a sentence of checks joined by `and`, `or`, `not` and brackets:

    role:NAME                  the caller holds the role, or one that implies it: admin > manager > member > reader
    project_id:%(project_id)s  the caller's project is the target's (`user_id` in the same way)
    rule:NAME                  another rule holds
    @  !                       always, never (an empty sentence is `@`)

An operator's `policy.yaml` replaces single rules of the table and may name its own for use by `rule:`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from whimbrel.domain.errors import Forbidden, SettingsError
from whimbrel.identity.caller import Caller
from whimbrel.ops import yamlfile

Target = Mapping[str, str | None]
"""What is acted on: its `project_id` and `user_id`, where it has them."""

Check = Callable[[Caller, Target], bool]

RANKS = ("admin", "manager", "member", "reader")
"""Each of these roles implies those after it."""

ROLES = (*RANKS, "service")
"""Every role that there is; `service` stands apart, it implies nothing."""

ADMIN = "rule:context_is_admin"
MANAGER = "rule:project_manager_or_admin"
MEMBER = "rule:project_member_or_admin"
READER = "rule:project_reader_or_admin"
ANYBODY = "@"

_BASE = {
    "context_is_admin": "role:admin",
    "project_manager_api": "role:manager and project_id:%(project_id)s",
    "project_member_api": "role:member and project_id:%(project_id)s",
    "project_reader_api": "role:reader and project_id:%(project_id)s",
    "project_manager_or_admin": "rule:project_manager_api or rule:context_is_admin",
    "project_member_or_admin": "rule:project_member_api or rule:context_is_admin",
    "project_reader_or_admin": "rule:project_reader_api or rule:context_is_admin",
    "owner": "user_id:%(user_id)s",
}


def _each(service: str, check: str, names: str) -> dict[str, str]:
    return {f"{service}:{name}": check for name in names.split()}


def _compute() -> dict[str, str]:
    nova = "os_compute_api"
    return {
        **_each(nova, READER, "servers:index servers:detail servers:show ips:index ips:show"),
        **_each(nova, MEMBER, "servers:create servers:update servers:delete servers:start servers:stop servers:reboot"),
        **_each(nova, MEMBER, "servers:resize servers:confirm_resize servers:revert_resize"),
        **_each(nova, ADMIN, "servers:create:forced_host servers:index:get_all_tenants servers:detail:get_all_tenants"),
        **_each(nova, READER, "server-metadata:index server-metadata:show"),
        **_each(nova, MEMBER, "server-metadata:create server-metadata:update server-metadata:update_all"),
        **_each(nova, MEMBER, "server-metadata:delete"),
        **_each(nova, READER, "os-server-tags:index os-server-tags:show"),
        **_each(nova, MEMBER, "os-server-tags:update os-server-tags:update_all"),
        **_each(nova, MEMBER, "os-server-tags:delete os-server-tags:delete_all"),
        **_each(nova, MANAGER, "os-migrate-server:migrate os-migrate-server:migrate_live os-migrations:index"),
        **_each(nova, ADMIN, "os-migrate-server:migrate_live:host"),
        **_each(
            nova, ADMIN, "os-migrate-server:migrate:host os-migrations:index:all_projects os-migrations:index:host"
        ),
        **_each(nova, MANAGER, "servers:migrations:index servers:migrations:delete servers:migrations:force_complete"),
        **_each(nova, ADMIN, "servers:migrations:show"),
        **_each(nova, READER, "os-instance-actions:list os-instance-actions:show"),
        **_each(nova, ADMIN, "os-instance-actions:events:details"),
        **_each(nova, MEMBER, "os-console-output os-lock-server:lock os-lock-server:unlock"),
        **_each(nova, ADMIN, "os-evacuate os-admin-actions:reset_state os-extended-server-attributes"),
        **_each(nova, ADMIN, "os-services:list os-services:update os-services:delete"),
        **_each(nova, ADMIN, "os-hypervisors:list os-hypervisors:list-detail os-hypervisors:show"),
        **_each(nova, ADMIN, "os-hypervisors:statistics os-hypervisors:search os-hypervisors:servers"),
        **_each(nova, ADMIN, "os-hypervisors:uptime os-aggregates:index"),
        **_each(nova, ADMIN, "os-flavor-manage:create os-flavor-manage:update os-flavor-manage:delete"),
        **_each(nova, ADMIN, "os-flavor-access os-flavor-access:add_tenant_access"),
        **_each(nova, ADMIN, "os-flavor-access:remove_tenant_access"),
        **_each(nova, ANYBODY, "os-flavor-extra-specs:index os-flavor-extra-specs:show"),
        **_each(nova, ADMIN, "os-flavor-extra-specs:create os-flavor-extra-specs:update os-flavor-extra-specs:delete"),
        **_each(nova, ANYBODY, "os-availability-zone:list limits extensions os-quota-sets:defaults"),
        **_each(nova, ADMIN, "os-availability-zone:detail limits:other_project"),
        **_each(nova, READER, "os-server-groups:index os-quota-sets:show os-quota-sets:detail os-security-groups:list"),
        **_each(nova, f"rule:owner or {ADMIN}", "os-keypairs:index"),
    }


def _others() -> dict[str, str]:
    return {
        **_each("identity", ADMIN, "list_projects create_project update_project delete_project"),
        **_each("identity", f"{ADMIN} or project_id:%(project_id)s", "get_project"),
        **_each("identity", ADMIN, "list_users create_user update_user delete_user"),
        **_each("identity", f"{ADMIN} or rule:owner", "get_user list_user_projects"),
        **_each("identity", ADMIN, "list_roles get_role list_role_assignments create_grant revoke_grant check_grant"),
        **_each("identity", ADMIN, "list_domains get_domain list_services get_service list_endpoints"),
        **_each("identity", f"{ADMIN} or role:service or rule:owner", "validate_token"),
        **_each("image", READER, "get_image get_images download_image"),
        **_each("image", MEMBER, "add_image modify_image delete_image upload_image"),
        **_each("image", ADMIN, "publicize_image"),
        **_each("network", READER, "get_network get_subnet get_port"),
        **_each("whimbrel", MANAGER, "migrations"),
        **_each("whimbrel", ADMIN, "migrations:all_projects migrations:limit hosts hosts:fence audit metrics"),
    }


DEFAULTS: Mapping[str, str] = {**_BASE, **_compute(), **_others()}


MAX_NESTING = 30
"""Parentheses, `not`s and rules that refer to rules: deeper than this nobody reads, and evaluating has an end."""


class Policy:
    """The table with an operator's changes, compiled. A wrong sentence, or a circle of rules, is a SettingsError."""

    def __init__(self, changes: Mapping[str, str] | None = None) -> None:
        self._sentences = {**DEFAULTS, **(changes or {})}
        for name in changes or {}:
            if ":" in name and name not in DEFAULTS:
                raise SettingsError(f"The policy names the rule {name}, which this release does not have; remove it.")
        self._checks: dict[str, Check] = {}
        for name in self._sentences:
            self._compile(name, ())

    def allowed(self, rule: str, caller: Caller, target: Target) -> bool:
        """Return whether the caller may do to the target what the rule is about; KeyError for an unknown rule."""
        return self._checks[rule](caller, target)

    def require_names(self, names: Iterable[str]) -> None:
        """Raise KeyError when one of the names is no rule, so that a wrong row of a table fails at the start."""
        for name in names:
            self._checks[name]

    def _compile(self, name: str, above: tuple[str, ...]) -> Check:
        if len(above) > MAX_NESTING:
            raise SettingsError(f"The policy's rules refer to one another more than {MAX_NESTING} deep: {above[0]}.")
        if name in above:
            raise SettingsError(f"The policy's rules go in a circle: {' > '.join((*above, name))}.")
        if name not in self._sentences:
            raise SettingsError(f"The policy's rule {above[-1]} refers to {name}, which is not there.")
        if name not in self._checks:
            parser = _Parser(name, self._sentences[name], lambda other: self._compile(other, (*above, name)))
            self._checks[name] = parser.whole()
        return self._checks[name]


class _Parser:
    """Reads one sentence: `or` binds least, then `and`, then `not`."""

    _words = re.compile(r"\s*(\(|\)|[^\s()]+(?:\([^\s()]*\)s)?)")

    def __init__(self, name: str, sentence: str, rule: Callable[[str], Check]) -> None:
        self._name = name
        self._sentence = sentence
        self._rule = rule
        self._rest = self._words.findall(sentence) or ["@"]
        self._depth = 0

    def whole(self) -> Check:
        """Return the check that the sentence stands for."""
        check = self._any()
        if self._rest:
            raise self._wrong(self._rest[0])
        return check

    def _any(self) -> Check:
        checks = [self._all()]
        while self._take("or"):
            checks.append(self._all())
        return checks[0] if len(checks) == 1 else lambda who, what: any(check(who, what) for check in checks)

    def _all(self) -> Check:
        checks = [self._one()]
        while self._take("and"):
            checks.append(self._one())
        return checks[0] if len(checks) == 1 else lambda who, what: all(check(who, what) for check in checks)

    def _one(self) -> Check:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise SettingsError(
                f"The policy's rule {self._name} is nested more than {MAX_NESTING} deep; make it simpler."
            )
        check = self._inner()
        self._depth -= 1
        return check

    def _inner(self) -> Check:
        if self._take("not"):
            refused = self._one()
            return lambda who, what: not refused(who, what)
        if self._take("("):
            inner = self._any()
            if not self._take(")"):
                raise self._wrong(self._rest[0] if self._rest else "its end")
            return inner
        return self._leaf(self._rest.pop(0) if self._rest else "its end")

    def _leaf(self, word: str) -> Check:
        if word in ("@", "!"):
            return lambda who, what: word == "@"
        kind, _, value = word.partition(":")
        if kind == "role" and value:
            holders = implying(value)
            return lambda who, what: not holders.isdisjoint(who.roles)
        if kind == "rule" and value:
            return self._rule(value)
        if kind in ("project_id", "user_id") and re.fullmatch(r"%\((project_id|user_id)\)s", value):
            field = value[2:-2]
            return lambda who, what: what.get(field) is not None and getattr(who, kind) == what[field]
        raise self._wrong(word)

    def _take(self, word: str) -> bool:
        if self._rest and self._rest[0].lower() == word:
            self._rest.pop(0)
            return True
        return False

    def _wrong(self, word: str) -> SettingsError:
        return SettingsError(f"The policy's rule {self._name} cannot be read at {word!r}: {self._sentence}")


def implying(role: str) -> frozenset[str]:
    """Return the roles whose holder counts as a holder of `role`."""
    return frozenset(RANKS[: RANKS.index(role) + 1]) if role in RANKS else frozenset((role,))


def implied(roles: Collection[str]) -> list[str]:
    """Return the roles with all that they imply, in the table's order."""
    return [role for role in ROLES if not implying(role).isdisjoint(roles)]


_active = Policy()


def load(path: Path) -> None:
    """Make an operator's policy.yaml the policy of this process; SettingsError names what is wrong with it."""
    global _active
    changes = yamlfile.read(path) or {}
    if not isinstance(changes, dict) or not all(isinstance(part, str) for item in changes.items() for part in item):
        raise SettingsError(f"{path} must be a mapping from a rule's name to its sentence.")
    _active = Policy(changes)


def allowed(rule: str, caller: Caller, target: Target) -> bool:
    """Return whether this process's policy lets the caller do it; KeyError for an unknown rule."""
    return _active.allowed(rule, caller, target)


def enforce(rule: str, caller: Caller, target: Target) -> None:
    """Raise Forbidden, in Nova's words, unless the policy lets the caller do it."""
    if not allowed(rule, caller, target):
        raise Forbidden(f"Policy doesn't allow {rule} to be performed.")


def require_names(names: Iterable[str]) -> None:
    """Raise KeyError when a table of routes names a rule that does not exist."""
    _active.require_names(names)
