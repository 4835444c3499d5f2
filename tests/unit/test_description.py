"""The API's own description says what the table of routes says."""

from __future__ import annotations

import re

import pytest
from jsonschema import Draft202012Validator

from tests.unit.cloud import Cloud
from whimbrel.api import description, microversion
from whimbrel.api.routes import ROUTES

DOCUMENT = description.document(ROUTES, "http://cloud.test")


def test_every_row_of_the_table_of_routes_is_described() -> None:
    told = {
        (path, method.upper(), row["action"], row["since"], row["until"])
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
        for row in operation["x-rows"]
    }
    assert told == {
        (row.url_path, row.method, row.action, microversion.text(row.since), row.until and microversion.text(row.until))
        for row in ROUTES
    }
    assert all(row["summary"] for path in DOCUMENT["paths"].values() for row in path.get("get", {}).get("x-rows", ()))


def test_the_described_bodies_are_the_very_ones_that_are_checked() -> None:
    described = DOCUMENT["components"]["schemas"]
    for row in ROUTES:
        operation = DOCUMENT["paths"][row.url_path][row.method.lower()]
        references = re.findall(r"#/components/schemas/([\w.-]+)", str(operation.get("requestBody")))
        for schema in row.schemas:
            mine = [name for name in references if described[name] == description.portable(schema.body)]
            assert mine, f"{row.method} {row.url_path} does not describe its body of {schema.since}"


def test_the_schemas_are_schemas_and_their_patterns_are_the_standards() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert r"\\Z" not in repr(schema), name
    assert description.portable({"pattern": r"^a\Z", "const": r"\Z"}) == {"pattern": "^a$", "const": r"\Z"}


def test_an_action_is_one_of_its_single_keys() -> None:
    body = DOCUMENT["paths"]["/compute/v2.1/servers/{id}/action"]["post"]["requestBody"]
    ways = body["content"]["application/json"]["schema"]["oneOf"]
    assert len(ways) == len({row.action for row in ROUTES if row.url_path.endswith("/servers/{id}/action")})


@pytest.mark.anyio
async def test_anybody_may_read_the_description(cloud: Cloud) -> None:
    answer = await cloud.http.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json()["servers"] == [{"url": cloud.services.public_url}]
    assert answer.json()["paths"].keys() == DOCUMENT["paths"].keys()
