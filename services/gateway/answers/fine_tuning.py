"""Jobs of type `sft` as OpenAI's fine-tuning objects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.gateway.answers import unix
from services.gateway.tuning import RATE
from services.gateway.view import View
from services.gateway.view.records import JobRecord
from shared.contracts.jobs import CheckpointRef, JobState, JobStatus

STATUS = {
    JobStatus.queued: "queued",
    JobStatus.starting: "validating_files",
    JobStatus.backoff: "queued",
    JobStatus.running: "running",
    JobStatus.pausing: "running",
    JobStatus.cancelling: "running",
    JobStatus.publishing: "running",
    JobStatus.paused: "paused",
    JobStatus.succeeded: "succeeded",
    JobStatus.failed: "failed",
    JobStatus.cancelled: "cancelled",
}
TOLD = ("JobTransitioned", "AttemptStarted", "AttemptFailed", "CheckpointSaved", "Progress")
"""The types of records that OpenAI's list of events shows."""
METRIC_NAMES = {
    "loss": "train_loss",
    "train_loss": "train_loss",
    "eval_loss": "valid_loss",
    "valid_loss": "valid_loss",
    "mean_token_accuracy": "train_mean_token_accuracy",
    "eval_mean_token_accuracy": "valid_mean_token_accuracy",
}


def fine_tuning_job(state: JobState, view: View) -> dict[str, Any]:
    """OpenAI's object. `fine_tuned_model` is the published version, `name@3`."""
    params = state.spec.params
    progress = view.records.latest_progress(state)
    hyperparameters = _hyperparameters(params)
    inputs = state.spec.inputs
    return {
        "id": state.job_id,
        "object": "fine_tuning.job",
        "created_at": unix(state.created_at),
        "finished_at": unix(state.finished_at),
        "model": inputs["model"].ref if "model" in inputs else params.get("base_model") or "",
        "fine_tuned_model": _tuned(state),
        "organization_id": state.tenant,
        "status": STATUS[state.status],
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "training_file": _file(state, "training_data") or "",
        "validation_file": _file(state, "validation_data"),
        "result_files": [],
        "trained_tokens": _tokens(state, progress),
        "estimated_finish": _finish(state, progress),
        "error": _error(state),
        "seed": params.get("seed", 0),
        "integrations": [],
        "metadata": state.spec.labels,
        "params": params,
        "reason": state.reason,
    }


def event(record: JobRecord) -> dict[str, Any]:
    """One thing that happened, as a sentence; progress comes with its numbers."""
    is_metrics = record.type == "Progress"
    return {
        "id": f"ftevent-{record.type.lower()}-{record.position}",
        "object": "fine_tuning.job.event",
        "created_at": unix(record.at),
        "level": _level(record),
        "message": _sentence(record),
        "type": "metrics" if is_metrics else "message",
        "data": _numbers(record.body) if is_metrics else None,
    }


def checkpoint(saved: CheckpointRef, state: JobState) -> dict[str, Any]:
    """A saved step. It is not served by itself: the name says where it belongs."""
    metrics = {METRIC_NAMES[name]: value for name, value in saved.metrics.items() if name in METRIC_NAMES}
    return {
        "id": f"ftckpt-{state.job_id}-{saved.attempt}-{saved.step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": unix(saved.at),
        "fine_tuned_model_checkpoint": f"{state.spec.output}:ckpt-step-{saved.step}",
        "fine_tuning_job_id": state.job_id,
        "step_number": saved.step,
        "metrics": {"step": saved.step, **metrics},
    }


def _hyperparameters(params: dict[str, Any]) -> dict[str, Any]:
    rate, epochs = float(params.get("learning_rate", RATE)), float(params.get("epochs", 1))
    return {
        "n_epochs": max(1, round(epochs)),
        "batch_size": params.get("batch_size", "auto"),
        "learning_rate_multiplier": round(rate / RATE, 6),
    }


def _tuned(state: JobState) -> str | None:
    if state.status is not JobStatus.succeeded:
        return None
    named = [pin.ref for pin in state.outputs if pin.name == state.spec.output]
    return next(iter(named or [pin.ref for pin in state.outputs]), None)


def _file(state: JobState, name: str) -> str | None:
    pin = state.spec.inputs.get(name)
    return None if pin is None else pin.name if pin.kind == "file" else pin.ref


def _tokens(state: JobState, progress: JobRecord | None) -> int | None:
    if not state.status.terminal or progress is None:
        return None
    return int(progress.body.get("tokens") or 0)


def _finish(state: JobState, progress: JobRecord | None) -> int | None:
    if state.status is not JobStatus.running or progress is None or progress.body.get("eta_s") is None:
        return None
    return int(max(progress.at.timestamp() + progress.body["eta_s"], datetime.now(UTC).timestamp()))


def _error(state: JobState) -> dict[str, Any] | None:
    failure = state.failure
    if failure is None:
        return None
    message = f"{failure.message} {failure.hint}".strip()
    return {"code": failure.reason, "message": message, "param": failure.param}


def _level(record: JobRecord) -> str:
    if record.body.get("after") == JobStatus.failed:
        return "error"
    return "warn" if record.type == "AttemptFailed" else "info"


def _sentence(record: JobRecord) -> str:
    body = record.body
    match record.type:
        case "Progress":
            total = f"/{body['total_steps']}" if body.get("total_steps") else ""
            loss = body.get("metrics", {}).get("loss")
            return f"Step {body['step']}{total}" + (f": training loss={loss:.4f}" if loss is not None else "")
        case "JobTransitioned":
            return f"The job is {body['after']}" + (f": {body['reason']}" if body.get("reason") else ".")
        case "AttemptStarted":
            return f"Attempt {record.attempt} started on {body['node']}."
        case "CheckpointSaved":
            return f"Checkpoint saved at step {body['checkpoint']['step']}."
        case _:
            return f"Attempt {record.attempt} failed: {body['failure']['message']}"


def _numbers(body: dict[str, Any]) -> dict[str, Any]:
    metrics = {METRIC_NAMES.get(name, name): value for name, value in body.get("metrics", {}).items()}
    return {"step": body["step"], "total_steps": body.get("total_steps"), "tokens": body.get("tokens"), **metrics}
