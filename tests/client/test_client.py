"""A job's life through the generated client, on the running twin. Every answer is also held to the document."""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from conftest import Document

Load = Callable[[str], ModuleType]


def finished(load: Load, client: Any, name: str) -> Any:
    """The job once it has ended."""
    models, get_job = load("models"), load("api.jobs.get_job")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = get_job.sync(name, client=client)
        assert isinstance(job, models.TrainingJobStatus), job
        if job.status in (models.Status.SUCCEEDED, models.Status.FAILED):
            return job
        time.sleep(0.5)
    raise AssertionError(f"not within 120 s: {job}")


def test_a_job_is_submitted_followed_listed_and_read(load: Load, client: Any, request_of: Callable[..., Any]) -> None:
    models = load("models")
    body = request_of(seconds=2, steps=4)
    submit_job = load("api.jobs.submit_job")

    created = submit_job.sync_detailed(client=client, body=body)
    assert created.status_code == 201
    assert isinstance(created.parsed, models.TrainingJobStatus), created.parsed
    name = created.parsed.name
    assert created.headers["Location"] == created.parsed.links.self_ == f"/train/{name}"
    assert (created.parsed.status, created.parsed.phase) == (models.Status.SUBMITTED, models.Phase.PENDING)

    replayed = submit_job.sync_detailed(client=client, body=body)
    assert (replayed.status_code, replayed.headers["Idempotent-Replayed"]) == (200, "true")
    assert isinstance(replayed.parsed, models.TrainingJobStatus)
    assert replayed.parsed.submission == created.parsed.submission

    job = finished(load, client, name)
    assert (job.status, job.phase) == (models.Status.SUCCEEDED, models.Phase.SUCCEEDED), job
    assert job.run_id == body.run_id
    assert job.created_at <= job.started_at <= job.finished_at
    assert job.replicas.master.succeeded == 1

    listed = load("api.jobs.list_jobs").sync(client=client, run_id=body.run_id, status=models.Status.SUCCEEDED)
    assert isinstance(listed, models.JobList), listed
    assert [summary.name for summary in listed.jobs] == [name]
    assert listed.continue_ is None

    events = load("api.jobs.list_events").sync(name, client=client)
    assert isinstance(events, models.EventList), events
    assert {event.object_.name for event in events.events} >= {name, f"{name}-master-0"}

    checkpoints = load("api.checkpoints.list_checkpoints").sync(name, client=client)
    assert isinstance(checkpoints, models.CheckpointList), checkpoints
    assert checkpoints.checkpoints == []
    latest = load("api.checkpoints.get_latest_checkpoint").sync(name, client=client)
    assert isinstance(latest, models.Problem), latest
    assert latest.code == models.ProblemCode.CHECKPOINT_NOT_FOUND

    cancelled = load("api.jobs.cancel_job").sync_detailed(name, client=client)
    assert cancelled.status_code == 202
    assert isinstance(cancelled.parsed, models.TrainingJobStatus), cancelled.parsed


def test_a_running_job_is_suspended_resumed_and_read(load: Load, client: Any, request_of: Callable[..., Any]) -> None:
    models = load("models")
    created = load("api.jobs.submit_job").sync(client=client, body=request_of(seconds=600, steps=600))
    assert isinstance(created, models.TrainingJobStatus), created
    name, get_job = created.name, load("api.jobs.get_job")

    def wait_for(phase: Any) -> Any:
        deadline = time.monotonic() + 60
        while (job := get_job.sync(name, client=client)).phase != phase:
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
        return job

    try:
        wait_for(models.Phase.RUNNING)
        log = load("api.jobs.get_logs").sync_detailed(name, client=client, tail=5)
        assert (log.status_code, type(log.parsed)) == (200, str)
        for change, phase in [("suspend_job", models.Phase.SUSPENDED), ("resume_job", models.Phase.RUNNING)]:
            changed = load(f"api.jobs.{change}").sync_detailed(name, client=client)
            assert changed.status_code == 202, changed
            assert isinstance(changed.parsed, models.TrainingJobStatus)
            wait_for(phase)
    finally:
        load("api.jobs.cancel_job").sync(name, client=client)


def test_a_dry_run_shows_the_manifest_and_creates_nothing(
    load: Load, client: Any, request_of: Callable[..., Any]
) -> None:
    models = load("models")
    rehearsed = load("api.jobs.submit_job").sync(client=client, body=request_of(), dry_run=True)
    assert isinstance(rehearsed, models.DryRun), rehearsed
    assert rehearsed.dry_run
    assert rehearsed.would_answer == 201
    assert rehearsed.manifest["kind"] == "PyTorchJob"
    job = load("api.jobs.get_job").sync(rehearsed.name, client=client)
    assert isinstance(job, models.Problem), job
    assert job.code == models.ProblemCode.JOB_NOT_FOUND


def test_a_refusal_is_a_typed_problem(
    load: Load, client: Any, connect: Callable[[str], Any], request_of: Callable[..., Any]
) -> None:
    models = load("models")
    refused = load("api.jobs.list_jobs").sync_detailed(client=connect("0" * 32))
    assert refused.status_code == 401
    assert isinstance(refused.parsed, models.Problem)
    assert refused.parsed.code == models.ProblemCode.INVALID_TOKEN
    assert refused.parsed.request_id

    body = request_of()
    body.num_nodes, body.run_id = 0, "-"
    refused = load("api.jobs.submit_job").sync_detailed(client=client, body=body)
    assert refused.status_code == 422
    assert isinstance(refused.parsed, models.Problem)
    assert [error.pointer for error in refused.parsed.errors] == ["/run_id", "/num_nodes"]


def test_the_service_tells_of_itself(load: Load, client: Any, settings: dict[str, str], document: Document) -> None:
    models = load("models")
    public = load("client").Client(base_url=settings["API_URL"])
    health = load("api.service.get_health").sync(client=public)
    assert isinstance(health, models.Health), health
    served = load("api.service.get_openapi").sync(client=public)
    assert served.to_dict() == document.content
    readiness = load("api.service.get_readiness").sync(client=client)
    assert isinstance(readiness, models.Readiness), readiness
    assert readiness.ready


def test_parameters_are_bounded_as_the_document_says(
    client: Any, load: Load, request_of: Callable[..., Any], document: Document
) -> None:
    """What lies at a bound is taken, what lies beyond is refused by the parameter's name."""
    models = load("models")
    job = load("api.jobs.submit_job").sync(client=client, body=request_of(seconds=1))
    assert isinstance(job, models.TrainingJobStatus), job
    cases = [case for case in document.operations() if case[0] == "get"]
    tried = 0
    for _, path, operation in cases:
        for parameter in operation.get("parameters", []):
            if "schema" not in parameter:
                continue
            name, schema = parameter["name"], parameter["schema"]
            if "$ref" in schema:
                schema = document.content["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            taken, refused = edges(schema)
            place = path.format(name=job.name, step=0)
            for value in [*taken, *refused]:
                answer = client.get_httpx_client().get(place, params={name: value})
                errors = answer.json().get("errors", []) if answer.status_code == 422 else []
                is_refused = any(error["pointer"] == f"?{name}" for error in errors)
                assert is_refused == (value in refused), f"{place} {name}={str(value)[:40]}: {answer.text[:300]}"
                tried += 1
    assert tried > 25


def edges(schema: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Values that the schema of a parameter just allows, and values that it just does not."""
    match schema:
        case {"enum": words}:
            return words, [*(f"{word}x" for word in words), ""]
        case {"type": "integer", "minimum": least, "maximum": most}:
            return [least, most], [least - 1, most + 1, "", "x", "1.5"]
        case {"maxLength": most}:
            return [], ["", "x" * (most + 1)]
        case {"pattern": _}:
            return [], ["x", ""]
        case {"format": "date-time"}:
            return ["2026-11-24T03:00:00Z"], ["yesterday", ""]
    pytest.fail(f"no edges are known of {schema}")
