"""The cloud and the user are found where OpenStack's clients find them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from whimbrel.cli import login
from whimbrel.domain.errors import SettingsError

AUTH = {"auth_url": "http://c/identity/v3", "username": "u", "password": "p", "project_name": "x"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def write(path: Path, clouds: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"clouds": clouds}))
    return path


def test_a_named_cloud_wins_over_the_environment(elsewhere: Path) -> None:
    write(elsewhere / "clouds.yaml", {"a": {"auth": AUTH, "region_name": "R"}, "b": {"auth": AUTH}})
    found = login.find("a", {"OS_AUTH_URL": "http://other"})
    assert (found.auth["auth_url"], found.region) == ("http://c/identity/v3", "R")


def test_the_environment_wins_over_a_cloud_that_nobody_named(elsewhere: Path) -> None:
    write(elsewhere / "clouds.yaml", {"a": {"auth": AUTH}})
    environ = {"OS_AUTH_URL": "http://e", "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_CACERT": "/ca"}
    found = login.find(None, environ)
    assert (found.tokens_url, found.verify) == ("http://e/v3/auth/tokens", "/ca")


def test_the_chosen_file_then_here_then_home(elsewhere: Path) -> None:
    home = write(elsewhere / "home/.config/openstack/clouds.yaml", {"home": {"auth": AUTH}})
    assert "cloud home" in login.find(None, {}).origin
    write(elsewhere / "clouds.yaml", {"here": {"auth": AUTH}})
    assert "cloud here" in login.find(None, {}).origin
    assert "cloud home" in login.find(None, {"OS_CLIENT_CONFIG_FILE": str(home)}).origin


def test_secure_yaml_adds_the_password(elsewhere: Path) -> None:
    write(elsewhere / "clouds.yaml", {"a": {"auth": {**AUTH, "password": None}, "verify": False}})
    write(elsewhere / "secure.yaml", {"a": {"auth": {"password": "hidden"}}})
    found = login.find("a", {})
    assert found.request()["auth"]["identity"]["password"]["user"]["password"] == "hidden"
    assert found.verify is False


def test_the_request_names_user_project_and_their_domains() -> None:
    asked = login.Login("x", {**AUTH, "user_domain_name": "Default", "project_domain_id": "d"}).request()["auth"]
    assert asked["identity"]["password"]["user"] == {"name": "u", "password": "p", "domain": {"name": "Default"}}
    assert asked["scope"] == {"project": {"name": "x", "domain": {"id": "d"}}}
    by_token = login.Login("x", {"auth_url": "http://c", "token": "t", "project_id": "1"}).request()["auth"]
    assert by_token == {"identity": {"methods": ["token"], "token": {"id": "t"}}, "scope": {"project": {"id": "1"}}}


@pytest.mark.parametrize(
    ("cloud", "content", "said"),
    [
        (None, None, "no ./clouds.yaml or"),
        ("z", {"a": {"auth": AUTH}}, "has no cloud z; it has a"),
        (None, {"a": {"auth": AUTH}, "b": {"auth": AUTH}}, "several clouds (a, b)"),
        ("a", {"a": {"auth": {"auth_url": "http://c"}}}, "lacks username, password"),
        ("a", ["a"], "needs a `clouds` table"),
    ],
)
def test_what_is_missing_is_said(elsewhere: Path, cloud: str | None, content: object, said: str) -> None:
    if content is not None:
        write(elsewhere / "clouds.yaml", content)
    with pytest.raises(SettingsError) as caught:
        login.find(cloud, {})
    assert said in str(caught.value)
