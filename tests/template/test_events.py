"""The events in events/ are what API Gateway and S3 would send to the functions that their names say.

They are templates: ${TRAINER_API_TOKEN}, ${RUNS_BASE_URI} and ${RUNS_BUCKET} stand for what differs between
deployments. What the functions answer is not checked here: expected.json says it.
"""

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import pytest
from deployment import ROOT, Deployment

EVENTS = ROOT / "events"
HTTP = sorted(path.name for prefix in ("submit", "status") for path in EVENTS.glob(f"{prefix}-*.json"))
S3 = sorted(path.name for path in EVENTS.glob("indexer-*.json"))
PLACEHOLDERS = {"TRAINER_API_TOKEN", "RUNS_BASE_URI", "RUNS_BUCKET"}


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


def route_of(method: str, path: str, routes: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The route that API Gateway chooses, the one that matches segment by segment or $default, and its parameters."""
    for key in routes.keys() - {"$default"}:
        route_method, route = key.split(" ")
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(route))
        match = re.fullmatch(pattern, path)
        if method == route_method and match:
            return key, match.groupdict()
    return "$default", {}


def test_the_folder_holds_what_it_should() -> None:
    assert {path.name for path in EVENTS.iterdir()} == {*HTTP, *S3, "expected.json", "sample-request.json"}
    assert {name.split("-")[0] for name in HTTP} == {"submit", "status"}
    assert S3


@pytest.mark.parametrize("name", HTTP)
def test_a_request_reaches_its_function_as_the_gateway_would_send_it(name: str, routes: dict[str, str]) -> None:
    event = load(name)
    request = event["requestContext"]["http"]
    assert event["version"] == "2.0"
    assert event["rawPath"] == request["path"]
    key, parameters = route_of(request["method"], event["rawPath"], routes)
    assert event["routeKey"] == event["requestContext"]["routeKey"] == key
    assert event.get("pathParameters", {}) == parameters
    assert routes[key] == name.split("-")[0]
    assert event["requestContext"]["stage"] == "$default"
    query = dict(parse_qsl(event["rawQueryString"], keep_blank_values=True))
    assert query == event.get("queryStringParameters", {})
    assert [header for header in event["headers"] if header != header.lower()] == []
    if "body" in event:
        text = event["body"]
        body = base64.b64decode(text, validate=True) if event["isBase64Encoded"] else text.encode()
        assert event["headers"]["content-length"] == str(len(body))
        assert "content-type" in event["headers"]


def test_every_route_of_the_gateway_has_an_event(routes: dict[str, str]) -> None:
    assert {load(name)["routeKey"] for name in HTTP} == set(routes)


@pytest.mark.parametrize("name", [*HTTP, *S3])
def test_only_what_differs_between_deployments_is_left_open(name: str) -> None:
    text = (EVENTS / name).read_text()
    assert set(re.findall(r"\$\{(\w*)\}", text)) <= PLACEHOLDERS
    assert text.count("${") == len(re.findall(r"\$\{\w+\}", text))


def test_the_expected_answers_are_those_of_all_requests() -> None:
    expected = load("expected.json")
    assert sorted(expected) == sorted([*HTTP, *S3])
    for name in S3:
        # What the indexer answers, which the indexer's own tests compare; or that it fails.
        assert set(expected[name]) in ({"answer"}, {"fails"}), name
    for name in HTTP:
        answer = expected[name]
        assert set(answer) == {"status", "code"}, name
        # Null: the answer depends on what is in the cluster and in the bucket.
        refused = answer["status"] is not None and answer["status"] >= 400
        assert (answer["code"] is not None) == refused, name


def inner(event: Any) -> list[Any]:
    """What is in an event's envelopes: records and test events of S3, events of EventBridge, or none of them."""
    match event:
        case {"Records": records}:
            return [found for record in records for found in inner(record)]
        case {"eventSource": "aws:sqs", "messageId": str(), "body": text}:
            try:
                return inner(json.loads(text))
            except json.JSONDecodeError:
                return [text]
        case {"EventSource": "aws:sns", "Sns": {"Type": "Notification"} as notification}:
            return inner(notification)
        case {"Type": "Notification", "Message": text}:
            return inner(json.loads(text))
    return [event]


@pytest.mark.parametrize("name", S3)
def test_a_notification_has_the_form_that_s3_sends(name: str) -> None:
    configuration = Deployment().of_type("AWS::S3::Bucket")["RunsBucket"]["NotificationConfiguration"]
    sent = tuple(item["Event"].removeprefix("s3:").removesuffix("*") for item in configuration["LambdaConfigurations"])
    unknown = 0
    for event in inner(load(name)):
        match event:
            case {"Event": "s3:TestEvent"}:
                pass
            case {"eventSource": "aws:s3", "eventVersion": "2.1", "eventName": kind, "s3": {"object": {"key": key}}}:
                assert kind.startswith(sent)
                # Keys are form-encoded: an equals sign never stands bare.
                assert "=" not in key and "framework=" in unquote_plus(key)
                assert key.endswith(".json")
            case {"source": "aws.s3", "detail-type": "Object Created", "detail": {"object": {"key": key}}}:
                # EventBridge has them as they are.
                assert "framework=" in key and key.endswith(".json")
            case _:
                unknown += 1
    assert unknown == {"indexer-unknown.json": 1, "indexer-sqs-mixed.json": 2}.get(name, 0)


def test_the_sample_is_what_the_create_event_sends() -> None:
    assert json.loads(load("submit-create.json")["body"]) == load("sample-request.json")


def test_a_request_without_a_token_is_refused_unless_its_answer_is_public() -> None:
    """Public are the two documents, and that a route or a method is none: these come before the token check."""
    public = {None, "route_not_found", "method_not_allowed"}
    expected = load("expected.json")
    for name in HTTP:
        if not load(name)["headers"].get("x-trainer-token"):
            assert expected[name]["status"] is not None
            assert expected[name]["code"] in {*public, "missing_token"}, name
        else:
            assert expected[name]["code"] != "missing_token", name
