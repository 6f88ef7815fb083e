"""From a request to a job that is never lost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from services.gateway.bodies import Body
from services.gateway.errors import BadRequest, Conflict, TooMany, from_validation
from services.gateway.gateway import Gateway
from services.gateway.ids import new_id
from services.gateway.inputs import check_source, pin_inputs, still_there
from services.gateway.keys import Principal
from services.gateway.submissions import Asked, Order
from shared.contracts.artifacts import NAME_PATTERN, ArtifactKind, ArtifactName
from shared.contracts.jobs import JobSpec, JobState, JobStatus, Resources, SubmitJob
from shared.contracts.recipes import RECIPES, ImportParams, Params, Recipe, SftParams, output_kind
from shared.contracts.topics import JOBS_COMMANDS
from shared.contracts.written import Printable

P = TypeVar("P", bound=Params)
Labels = dict[Printable, Printable]


class WantedResources(Resources, Body):
    """What one node of the job needs."""


class WantedJob(Body):
    """A job to submit."""

    type: str = Field(description=f"One of: {', '.join(RECIPES)}.")
    name: Printable = Field("", max_length=255, description="For people.")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="Input → file id, `name`, `name@3` or `name@alias`. Pinned at submission."
    )
    params: dict[str, Any] = Field(default_factory=dict, description="The job type's own parameters.")
    resources: WantedResources = WantedResources()
    output: ArtifactName | None = Field(None, description="Name of the artifact that it publishes a version of.")
    priority: int = Field(0, ge=-100, le=100, description="Higher starts first.")
    labels: Labels = Field(default_factory=dict, max_length=32, description="Your own words, to filter by.")


def submit_job(here: Gateway, caller: Principal, asked: Asked, wanted: WantedJob) -> JobState:
    """Validate, pin, commit, publish. The same request gives the same job."""
    if earlier := here.submissions.earlier(asked):
        return here.view.jobs.get(caller.tenant, earlier.resource_id)
    return submit_spec(here, caller, asked, resolve(here, caller, wanted))


def submit_spec(here: Gateway, caller: Principal, asked: Asked, spec: JobSpec, retry_of: str | None = None) -> JobState:
    """Commit the submission together with the job as it is shown until the scheduler shows it; then publish."""
    check_queue(here, caller)
    job_id = new_id("job")
    command = SubmitJob(tenant=caller.tenant, job_id=job_id, spec=spec, retry_of=retry_of)
    submitted = JobState(
        tenant=caller.tenant,
        job_id=job_id,
        version=0,
        spec=spec,
        status=JobStatus.queued,
        reason="It was accepted and waits for the scheduler.",
        retry_of=retry_of,
        created_at=datetime.now(UTC),
    )
    order = Order(JOBS_COMMANDS, job_id, job_id, command, until="seen")
    accepted = here.submissions.accept(asked, order, lambda sql: here.view.jobs.add_submitted(sql, submitted))
    return here.view.jobs.get(caller.tenant, accepted.resource_id) if accepted.joined else submitted


def retry_job(here: Gateway, caller: Principal, asked: Asked, job_id: str) -> JobState:
    """A new job like a finished one."""
    if earlier := here.submissions.earlier(asked):
        return here.view.jobs.get(caller.tenant, earlier.resource_id)
    old = here.view.jobs.get(caller.tenant, job_id)
    if not old.status.terminal:
        raise Conflict(
            f"The job is {old.status}; only one that has ended can be run again.", param="job_id", code="job_not_ended"
        )
    still_there(here, caller.tenant, old.spec.inputs)
    return submit_spec(here, caller, asked, old.spec, retry_of=job_id)


def resolve(here: Gateway, caller: Principal, wanted: WantedJob) -> JobSpec:
    """The spec that a request means. Every error names its field."""
    recipe = recipe_of(wanted.type)
    params = check_params(recipe.params, wanted.params)
    _check_models(here, wanted, params)
    output = wanted.output or (wanted.name if NAME_PATTERN.fullmatch(wanted.name) else wanted.type)
    kind = output_kind(wanted.type, params)
    check_output(here, caller, output, kind)
    return JobSpec(
        type=wanted.type,
        name=wanted.name,
        inputs=pin_inputs(here, caller.tenant, recipe, wanted.inputs),
        params=params.model_dump(mode="json"),
        resources=resources_for(recipe, wanted.resources),
        output=output,
        output_kind=kind,
        priority=wanted.priority,
        labels=check_labels(wanted.labels, "labels"),
    )


def recipe_of(job_type: str) -> Recipe:
    try:
        return RECIPES[job_type]
    except KeyError:
        raise BadRequest(
            f"Unknown job type {job_type!r}; there are: {', '.join(RECIPES)}.", param="type", code="unknown_type"
        ) from None


def check_params(model: type[P], params: dict[str, Any], where: str = "params") -> P:
    """The parameters as the trainer will read them. Raises BadRequest naming the one that is wrong."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise from_validation([{**first, "loc": (where, *first["loc"])}], {where: params}) from None


def resources_for(recipe: Recipe, wanted: Resources) -> Resources:
    """A job that does not train takes no accelerator unless it asks for one. Raises BadRequest."""
    plain = Resources.model_validate(wanted.model_dump())
    devices, ranks = plain.devices or 0, plain.ranks_per_node or 1
    if devices and plain.ranks_per_node not in (None, devices):
        raise BadRequest(
            f"resources.ranks_per_node: with {devices} devices a node runs {devices} ranks, one for each; leave it "
            "out, or set devices to 0.",
            param="resources.ranks_per_node",
            code="invalid_value",
        )
    if not recipe.in_ranks and max(plain.nodes, devices, ranks) > 1:
        name = "nodes" if plain.nodes > 1 else "devices" if devices > 1 else "ranks_per_node"
        raise BadRequest(
            f"resources.{name}: a job of this type is the work of one process, which takes 1 at most.",
            param=f"resources.{name}",
            code="invalid_value",
        )
    return plain.changed(devices=0) if plain.devices is None and not recipe.trains else plain


def check_labels(labels: Labels, param: str) -> Labels:
    for label, value in labels.items():
        if not label or len(label) > 64 or len(value) > 512:
            raise BadRequest(
                f"{param}: names have 1 to 64 characters, values at most 512.", param=param, code="invalid_value"
            )
    return labels


def check_output(here: Gateway, caller: Principal, name: str, kind: ArtifactKind) -> None:
    """A name keeps its kind: better said now than when the work is done. Raises Conflict."""
    known = here.view.artifacts.find(caller.tenant, name)
    if known and known.kind is not kind:
        raise Conflict(
            f"{name!r} holds versions of kind {known.kind}, and this job makes {kind.one}; choose another 'output'.",
            param="output",
            code="other_kind",
        )


def check_queue(here: Gateway, caller: Principal) -> None:
    """The tenant's limit of unfinished jobs. Raises TooMany."""
    limit = caller.limits.get("max_queued_jobs", here.settings.max_queued_jobs)
    if here.view.jobs.unfinished(caller.tenant) >= limit:
        raise TooMany(
            f"{limit} jobs are not finished yet, which is this tenant's limit; wait for one to end or cancel one.",
            code="too_many_jobs",
            headers={"Retry-After": "30"},
        )


def _check_models(here: Gateway, wanted: WantedJob, params: Params) -> None:
    match params:
        case ImportParams(source=str(source)) if "file" in wanted.inputs:
            raise BadRequest(
                f"Give either the input 'file' or the parameter 'source' ({source!r}), not both.",
                param="params.source",
                code="invalid_value",
            )
        case ImportParams(source=str(source)):
            check_source(here.settings, source, "params.source")
        case ImportParams() if "file" not in wanted.inputs:
            raise BadRequest(
                "What shall be imported is missing: give the parameter 'source' or the input 'file'.",
                param="params.source",
                code="missing_input",
            )
        case SftParams(base_model=str(base)) if "model" in wanted.inputs:
            raise BadRequest(
                f"Give either the input 'model' or the parameter 'base_model' ({base!r}), not both.",
                param="params.base_model",
                code="invalid_value",
            )
        case SftParams(base_model=str(base)):
            check_source(here.settings, base, "params.base_model")
        case SftParams() if "model" not in wanted.inputs:
            raise BadRequest(
                "The base model is missing: give the input 'model' or the parameter 'base_model'.",
                param="inputs.model",
                code="missing_input",
            )
