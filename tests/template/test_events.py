"""The events in events/ are what API Gateway and S3 would send to the functions that their names say."""

import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import pytest
from deployment import ROOT, Deployment

EVENTS = ROOT / "events"
HTTP = sorted(path.name for prefix in ("submit", "status") for path in EVENTS.glob(f"{prefix}-*.json"))
S3 = sorted(path.name for path in EVENTS.glob("indexer-*.json"))


def load(name: str) -> Any:
    return json.loads((EVENTS / name).read_text())


@pytest.fixture(scope="module")
def routes() -> dict[str, str]:
    """API Gateway's route key -> the binary behind it."""
    paths = Deployment().of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]["paths"]
    found = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            key = path if path == "$default" else f"{method.upper()} {path}"
            uri = operation["x-amazon-apigateway-integration"]["uri"]
            [function] = re.findall(r"functions/<(\w+)Function\.Arn>/", uri)
            found[key] = function.lower()
    return found


def route_key(method: str, path: str, routes: dict[str, str]) -> str:
    """The route that API Gateway chooses: the one that matches segment by segment, else $default."""
    for key in routes.keys() - {"$default"}:
        route_method, route = key.split(" ")
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(route))
        if method == route_method and re.fullmatch(pattern, path):
            return key
    return "$default"


def test_the_folder_holds_what_it_should() -> None:
    assert {path.name for path in EVENTS.iterdir()} == {*HTTP, *S3, "sample-request.json"}
    assert {name.split("-")[0] for name in HTTP} == {"submit", "status"}
    assert S3


@pytest.mark.parametrize("name", HTTP)
def test_a_request_reaches_its_function_as_the_gateway_would_send_it(name: str, routes: dict[str, str]) -> None:
    event = load(name)
    request = event["requestContext"]["http"]
    assert event["version"] == "2.0"
    assert event["rawPath"] == request["path"]
    key = route_key(request["method"], event["rawPath"], routes)
    assert event["routeKey"] == event["requestContext"]["routeKey"] == key
    assert routes[key] == name.split("-")[0]
    assert event["requestContext"]["stage"] == "$default"
    assert dict(parse_qsl(event["rawQueryString"])) == event.get("queryStringParameters", {})
    assert [header for header in event["headers"] if header != header.lower()] == []
    if "body" in event:
        assert event["headers"]["content-length"] == str(len(event["body"].encode()))


@pytest.mark.parametrize("name", S3)
def test_a_notification_has_the_form_that_s3_sends(name: str) -> None:
    event = load(name)
    if name == "indexer-test-event.json":
        assert event["Event"] == "s3:TestEvent"
        assert "Records" not in event
        return
    configuration = Deployment().of_type("AWS::S3::Bucket")["RunsBucket"]["NotificationConfiguration"]
    sent = tuple(item["Event"].removeprefix("s3:").removesuffix("*") for item in configuration["LambdaConfigurations"])
    for record in event["Records"]:
        assert (record["eventSource"], record["eventVersion"]) == ("aws:s3", "2.1")
        assert record["eventName"].startswith(sent)
        # Keys are form-encoded: an equals sign never stands bare.
        key = record["s3"]["object"]["key"]
        assert "=" not in key and "framework=" in unquote_plus(key)
        assert key.endswith(".json")


def test_the_sample_is_what_the_create_event_sends() -> None:
    assert json.loads(load("submit-create.json")["body"]) == load("sample-request.json")


def test_only_the_requests_that_need_no_token_or_lack_it_have_none() -> None:
    without = [name for name in HTTP if "x-trainer-token" not in load(name)["headers"]]
    assert without == ["status-healthz.json", "submit-missing-token.json"]
