"""What the REST API offers beyond the `openai` package: one function a call, no I/O.

The clients (`llmos.LLMOS`, `llmos.AsyncLLMOS`) turn each into a method of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from uuid import uuid4

Json = dict[str, Any]

ENDED = ("succeeded", "failed", "cancelled")
"""The statuses in which a job stays."""


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    query: Mapping[str, str | int | Sequence[str]] = field(default_factory=dict)
    body: Json | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _given(**values: Any) -> dict[str, Any]:
    """Only what was given: the server knows the defaults."""
    return {name: value for name, value in values.items() if value is not None}


def _part(text: str) -> str:
    return quote(text, safe="@")


def _write(method: str, path: str, body: Json | None = None) -> Call:
    """A call that changes something carries a key, so that sending it again does it once."""
    return Call(method, path, body=body, headers={"Idempotency-Key": uuid4().hex})


# Jobs


def submit_job(
    type: str,  # noqa: A002 - the API's own word
    *,
    name: str | None = None,
    inputs: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    output: str | None = None,
    priority: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> Call:
    """Submit a job of any type: `probe`, `pretrain`, `sft`, `import`. Inputs are refs (`name@3`) or file ids."""
    optional = _given(
        name=name, inputs=inputs, params=params, resources=resources, output=output, priority=priority, labels=labels
    )
    return _write("POST", "/v1/jobs", {"type": type, **optional})


def get_job(job_id: str) -> Call:
    """Everything about one job: status, progress, attempts, outputs, failure."""
    return Call("GET", f"/v1/jobs/{_part(job_id)}")


def list_jobs(
    *,
    status: str | None = None,
    type: str | None = None,  # noqa: A002 - the API's own word
    after: str | None = None,
    limit: int | None = None,
) -> Call:
    """A page of jobs, newest first; `after` is the last id of the page before."""
    return Call("GET", "/v1/jobs", query=_given(status=status, type=type, after=after, limit=limit))


def cancel_job(job_id: str) -> Call:
    return _write("POST", f"/v1/jobs/{_part(job_id)}/cancel")


def pause_job(job_id: str) -> Call:
    return _write("POST", f"/v1/jobs/{_part(job_id)}/pause")


def resume_job(job_id: str) -> Call:
    return _write("POST", f"/v1/jobs/{_part(job_id)}/resume")


def retry_job(job_id: str) -> Call:
    """A new job with the same spec; its `retry_of` names this one."""
    return _write("POST", f"/v1/jobs/{_part(job_id)}/retry")


def job_events(job_id: str, *, after: str | None = None, limit: int | None = None) -> Call:
    """A page of the job's events; `after` is a cursor."""
    return Call("GET", f"/v1/jobs/{_part(job_id)}/events", query=_given(after=after, limit=limit))


def stream_events(job_id: str) -> Call:
    """The job's events as server-sent events."""
    return Call("GET", f"/v1/jobs/{_part(job_id)}/events", headers={"Accept": "text/event-stream"})


def stream_logs(job_id: str) -> Call:
    """The job's log as server-sent events."""
    return Call("GET", f"/v1/jobs/{_part(job_id)}/logs", headers={"Accept": "text/event-stream"})


def job_logs(job_id: str, *, after: str | None = None, limit: int | None = None) -> Call:
    """A page of the job's log lines; `after` is a cursor."""
    return Call("GET", f"/v1/jobs/{_part(job_id)}/logs", query=_given(after=after, limit=limit))


# Artifacts


def list_artifacts(
    *, kind: str | Sequence[str] | None = None, after: str | None = None, limit: int | None = None
) -> Call:
    """A page of names by name; `kind` takes one or several."""
    return Call("GET", "/v1/artifacts", query=_given(kind=kind, after=after, limit=limit))


def get_artifact(ref: str) -> Call:
    """One artifact, or one version of it: `name`, `name@3`, `name@production`."""
    return Call("GET", f"/v1/artifacts/{_part(ref)}")


def artifact_versions(name: str) -> Call:
    return Call("GET", f"/v1/artifacts/{_part(name)}/versions")


def artifact_lineage(ref: str) -> Call:
    """What a version was made from, and what was made from it."""
    return Call("GET", f"/v1/artifacts/{_part(ref)}/lineage")


def download(ref: str) -> Call:
    """A version as one .tar: bytes, not JSON."""
    return Call("GET", f"/v1/artifacts/{_part(ref)}/download")


def set_alias(name: str, alias: str, version: int) -> Call:
    return _write("PUT", f"/v1/artifacts/{_part(name)}/aliases/{_part(alias)}", {"version": version})


def delete_alias(name: str, alias: str) -> Call:
    return _write("DELETE", f"/v1/artifacts/{_part(name)}/aliases/{_part(alias)}")


def delete_artifact(ref: str) -> Call:
    return _write("DELETE", f"/v1/artifacts/{_part(ref)}")


# Deployments and nodes


def deploy(
    model: str,
    *,
    name: str | None = None,
    replicas: int | None = None,
    adapters: Sequence[str] | None = None,
    auto_adapters: bool | None = None,
    engine: str | None = None,
    engine_args: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    max_loras: int | None = None,
    max_queue: int | None = None,
) -> Call:
    """Serve a model version; again with the same name changes the deployment."""
    optional = _given(
        name=name,
        replicas=replicas,
        adapters=list(adapters) if adapters is not None else None,
        auto_adapters=auto_adapters,
        engine=engine,
        engine_args=engine_args,
        resources=resources,
        max_loras=max_loras,
        max_queue=max_queue,
    )
    return _write("POST", "/v1/deployments", {"model": model, **optional})


def list_deployments() -> Call:
    return Call("GET", "/v1/deployments")


def get_deployment(name: str) -> Call:
    return Call("GET", f"/v1/deployments/{_part(name)}")


def scale(name: str, replicas: int) -> Call:
    return _write("PATCH", f"/v1/deployments/{_part(name)}", {"replicas": replicas})


def undeploy(name: str) -> Call:
    return _write("DELETE", f"/v1/deployments/{_part(name)}")


def list_nodes() -> Call:
    return Call("GET", "/v1/nodes")
