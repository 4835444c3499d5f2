"""Which cloud to talk to, and as whom: clouds.yaml and the OS_* variables, found where OpenStack's clients find them.

A cloud that is named (--os-cloud, OS_CLOUD) comes from clouds.yaml, with what secure.yaml adds to it. Otherwise
the OS_* variables count if they have an OS_AUTH_URL, and otherwise the only cloud of clouds.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whimbrel.domain.errors import SettingsError
from whimbrel.ops import yamlfile

PLACES = (".", "~/.config/openstack", "/etc/openstack")
AUTH_KEYS = (
    "auth_url", "username", "user_id", "password", "token", "project_name", "project_id", "user_domain_name",
    "user_domain_id", "project_domain_name", "project_domain_id",
)  # fmt: skip
DEFAULT_DOMAIN = {"id": "default"}


@dataclass(frozen=True)
class Login:
    """A cloud's address and a user's proof. `verify` is False, True or a CA file, `origin` where this was found."""

    origin: str
    auth: Mapping[str, str]
    region: str | None = None
    interface: str = "public"
    verify: bool | str = True
    direct: bool = field(default=False, compare=False)
    """Whether HTTP proxies of the environment are passed by."""

    @property
    def tokens_url(self) -> str:
        """Where tokens are issued; clouds.yaml may or may not name the version."""
        url = self.auth["auth_url"].rstrip("/")
        return f"{url if url.endswith('/v3') else url + '/v3'}/auth/tokens"

    def request(self) -> dict[str, Any]:
        """Return the body that asks for a token."""
        auth: dict[str, Any] = {"identity": self._identity()}
        project = {key: self.auth[f"project_{key}"] for key in ("id", "name") if self.auth.get(f"project_{key}")}
        if "id" in project:
            auth["scope"] = {"project": {"id": project["id"]}}
        elif project:
            auth["scope"] = {"project": {**project, "domain": self._domain("project")}}
        return {"auth": auth}

    def _identity(self) -> dict[str, Any]:
        if self.auth.get("token"):
            return {"methods": ["token"], "token": {"id": self.auth["token"]}}
        user: dict[str, Any] = {"password": self.auth["password"]}
        if self.auth.get("user_id"):
            user["id"] = self.auth["user_id"]
        else:
            user |= {"name": self.auth["username"], "domain": self._domain("user")}
        return {"methods": ["password"], "password": {"user": user}}

    def _domain(self, of: str) -> dict[str, str]:
        for key in ("id", "name"):
            if value := self.auth.get(f"{of}_domain_{key}"):
                return {key: value}
        return DEFAULT_DOMAIN


def find(cloud: str | None, environ: Mapping[str, str]) -> Login:
    """Return the login that the name, the environment and the files lead to; SettingsError says what is missing."""
    if cloud is None and environ.get("OS_AUTH_URL"):
        return _checked(_from_environment(environ))
    path = _file("clouds.yaml", environ.get("OS_CLIENT_CONFIG_FILE"))
    if path is None:
        where = environ.get("OS_CLIENT_CONFIG_FILE") or " or ".join(f"{place}/clouds.yaml" for place in PLACES)
        raise SettingsError(f"No cloud is known: there is no {where}, and OS_AUTH_URL is not set.")
    clouds = _clouds(path)
    name = cloud or (next(iter(clouds)) if len(clouds) == 1 else None)
    if name is None:
        raise SettingsError(f"{path} has several clouds ({', '.join(clouds)}); choose one with --os-cloud or OS_CLOUD.")
    if name not in clouds:
        raise SettingsError(f"{path} has no cloud {name}; it has {', '.join(clouds) or 'none'}.")
    secure = _file("secure.yaml", environ.get("OS_CLIENT_SECURE_FILE"))
    return _checked(
        _from_cloud(f"cloud {name} of {path}", clouds[name], _clouds(secure).get(name, {}) if secure else {})
    )


def _from_environment(environ: Mapping[str, str]) -> Login:
    auth = {key: environ[f"OS_{key.upper()}"] for key in AUTH_KEYS if environ.get(f"OS_{key.upper()}")}
    return Login(
        origin="the OS_* variables",
        auth=auth,
        region=environ.get("OS_REGION_NAME"),
        interface=environ.get("OS_INTERFACE", "public"),
        verify=environ.get("OS_CACERT", True),
    )


def _from_cloud(origin: str, cloud: Mapping[str, Any], secure: Mapping[str, Any]) -> Login:
    merged = {**cloud, **secure}
    auth = {**(cloud.get("auth") or {}), **(secure.get("auth") or {})}
    verify: bool | str = (merged.get("verify", True) and str(merged.get("cacert") or "")) or merged.get("verify", True)
    return Login(
        origin=origin,
        auth={key: str(auth[key]) for key in AUTH_KEYS if auth.get(key) is not None},
        region=None if merged.get("region_name") is None else str(merged["region_name"]),
        interface=str(merged.get("interface") or "public"),
        verify=verify,
    )


def _checked(login: Login) -> Login:
    """Refuse a login that cannot work before any server is asked."""
    auth = login.auth
    missing = [] if auth.get("auth_url") else ["auth_url"]
    if not auth.get("token"):
        missing += [] if auth.get("username") or auth.get("user_id") else ["username"]
        missing += [] if auth.get("password") else ["password"]
    if missing:
        raise SettingsError(f"{login.origin[0].upper()}{login.origin[1:]} lacks {', '.join(missing)}.")
    return login


def _file(name: str, chosen: str | None) -> Path | None:
    candidates = [Path(chosen)] if chosen else [Path(place).expanduser() / name for place in PLACES]
    return next((path for path in candidates if path.is_file()), None)


def _clouds(path: Path) -> dict[str, dict[str, Any]]:
    content = yamlfile.read(path)
    clouds = content.get("clouds") if isinstance(content, dict) else None
    if not isinstance(clouds, dict) or not all(isinstance(cloud, dict) for cloud in clouds.values()):
        raise SettingsError(f"{path} is not a clouds file: it needs a `clouds` table of named clouds.")
    named = {str(name): cloud for name, cloud in clouds.items()}
    for name, cloud in named.items():
        _check_types(f"cloud {name} of {path}", cloud)
    return named


def _check_types(origin: str, cloud: Mapping[str, Any]) -> None:
    """Refuse a table where a text belongs, and the other way round; SettingsError names the key."""
    auth = cloud.get("auth")
    if auth is not None and not isinstance(auth, dict):
        raise SettingsError(f"The `auth` of {origin} must be a table of keys, not {auth!r:.80}.")
    texts = {key: cloud.get(key) for key in ("region_name", "interface", "cacert")}
    texts |= {f"auth.{key}": (auth or {}).get(key) for key in AUTH_KEYS}
    for key, value in texts.items():
        if isinstance(value, dict | list):
            raise SettingsError(f"The `{key}` of {origin} must be a text, not {value!r:.80}.")
    if not isinstance(cloud.get("verify", True), bool):
        raise SettingsError(f"The `verify` of {origin} is true or false, not {cloud['verify']!r:.80}.")
