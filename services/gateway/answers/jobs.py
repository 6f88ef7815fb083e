"""Jobs, their events, logs and progress, in the system's own words."""

from __future__ import annotations

from typing import Any

from services.gateway.answers import unix
from services.gateway.view import View
from services.gateway.view.records import JobRecord
from shared.contracts.jobs import AttemptState, CheckpointRef, JobState


def job(state: JobState, view: View) -> dict[str, Any]:
    """Everything there is to know of a job."""
    progress = view.records.latest_progress(state) if state.version else None
    return {
        **brief_job(state),
        "queue_position": view.jobs.queue_position(state),
        "progress": _progress(progress) if progress else None,
        "params": state.spec.params,
        "resources": state.spec.resources.model_dump(mode="json"),
        "attempts": [_attempt(attempt) for attempt in state.attempts],
        "checkpoints": [checkpoint(saved) for saved in state.checkpoints],
    }


def brief_job(state: JobState) -> dict[str, Any]:
    """A job as a list shows it."""
    spec = state.spec
    return {
        "id": state.job_id,
        "object": "job",
        "type": spec.type,
        "name": spec.name,
        "status": state.status,
        "reason": state.reason,
        "created_at": unix(state.created_at),
        "started_at": unix(state.started_at),
        "finished_at": unix(state.finished_at),
        "inputs": {name: pin.ref for name, pin in spec.inputs.items()},
        "output": spec.output,
        "output_kind": spec.output_kind,
        "outputs": [{"ref": pin.ref, "kind": pin.kind} for pin in state.outputs],
        "priority": spec.priority,
        "labels": spec.labels,
        "attempt": state.attempt,
        "metrics": state.metrics,
        "failure": state.failure.model_dump(mode="json") if state.failure else None,
        "retry_of": state.retry_of,
        "version": state.version,
    }


def checkpoint(saved: CheckpointRef) -> dict[str, Any]:
    return {"step": saved.step, "attempt": saved.attempt, "created_at": unix(saved.at), "metrics": saved.metrics}


def record(found: JobRecord, job_id: str, kind: str) -> dict[str, Any]:
    """An event, or some lines of the log. Its id is the cursor to go on from."""
    return {
        "id": str(found.position),
        "object": kind,
        "job_id": job_id,
        "type": found.type,
        "created_at": found.at.isoformat(),
        "attempt": found.attempt,
        "rank": found.rank,
        "data": {name: value for name, value in found.body.items() if name not in ("attempt", "rank")},
    }


def point(found: JobRecord) -> dict[str, Any]:
    """One point of the metrics' series."""
    return {"id": str(found.position), "created_at": found.at.isoformat(), **_progress(found)}


def _progress(found: JobRecord) -> dict[str, Any]:
    words = ("step", "total_steps", "tokens", "percent", "eta_s", "metrics", "attempt", "rank")
    return {"at": unix(found.at), **{word: found.body.get(word) for word in words}}


def _attempt(attempt: AttemptState) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "outcome": attempt.outcome,
        "nodes": list(dict.fromkeys(place.node for place in attempt.places)),
        "ranks": len(attempt.places),
        "dispatched_at": unix(attempt.dispatched_at),
        "started_at": unix(attempt.started_at),
        "ended_at": unix(attempt.ended_at),
        "failure": attempt.failure.model_dump(mode="json") if attempt.failure else None,
    }
