"""OpenAI's fine-tuning requests in the system's own words: a job of type `sft`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from services.gateway.bodies import Body
from services.gateway.errors import BadRequest
from services.gateway.gateway import Gateway
from services.gateway.inputs import check_source, is_folder, no_such_model, pin_inputs
from services.gateway.keys import Principal
from services.gateway.submissions import Asked
from services.gateway.submit import (
    Labels,
    WantedResources,
    check_labels,
    check_output,
    check_params,
    resources_for,
    submit_spec,
)
from shared.contracts.artifacts import ArtifactKind, ArtifactName, split_ref
from shared.contracts.jobs import JobSpec, JobState
from shared.contracts.recipes import RECIPES, SftParams, output_kind

Auto = Literal["auto"]
SFT = RECIPES["sft"]
FIELDS = {"training_data": "training_file", "validation_data": "validation_file", "model": "model"}
RATE = float(SftParams.model_fields["learning_rate"].default)
"""What `learning_rate_multiplier` multiplies."""
LONGEST_NAME = 128
SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _check_suffix(suffix: str) -> str:
    if not SUFFIX.fullmatch(suffix):
        raise ValueError(
            f"{suffix!r} is no suffix: use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return suffix


Suffix = Annotated[str, AfterValidator(_check_suffix)]


class Hyperparameters(Body):
    n_epochs: int | Auto = Field("auto", description="Passes over the data.")
    batch_size: int | Auto = Field("auto", description="Samples per step; `auto` finds the largest that fits.")
    learning_rate_multiplier: float | Auto = Field("auto", description=f"Times {RATE:g}.")

    def params(self) -> dict[str, Any]:
        """These as parameters of `sft`; `auto` is its default."""
        rate = self.learning_rate_multiplier
        given = {
            "epochs": self.n_epochs,
            "batch_size": self.batch_size,
            "learning_rate": rate if rate == "auto" else rate * RATE,
        }
        return {name: value for name, value in given.items() if value != "auto"}


class Supervised(Body):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Body):
    type: Literal["supervised"] = Field(description="Only `supervised` is there.")
    supervised: Supervised = Supervised()


class WantedTuning(Body):
    """OpenAI's request, and what our `sft` can do more: `params`, `resources`, `priority`, `output`."""

    model: str = Field(description="A model artifact, a deployment, a hub id (`owner/name`) or a folder.")
    training_file: str = Field(description="A file id, or an artifact of data.")
    validation_file: str | None = None
    suffix: Suffix | None = Field(None, description="Ends the new model's name.")
    seed: int | None = Field(None, ge=0, lt=2**32)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    metadata: Labels | None = Field(None, max_length=16)
    integrations: list[Any] | None = Field(None, max_length=0, description="There are none here.")
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of `sft`; they win.")
    resources: WantedResources = WantedResources()
    priority: int = Field(0, ge=-100, le=100)
    output: ArtifactName | None = Field(None, description="The new model's name; by default base and suffix.")


def create_tuning(here: Gateway, caller: Principal, asked: Asked, wanted: WantedTuning) -> JobState:
    """Validate, pin, commit, publish: as every job."""
    if earlier := here.submissions.earlier(asked):
        return here.view.jobs.get(caller.tenant, earlier.resource_id)
    return submit_spec(here, caller, asked, _resolve(here, caller, wanted))


def _resolve(here: Gateway, caller: Principal, wanted: WantedTuning) -> JobSpec:
    inputs, base = _base(here, caller, wanted.model)
    if (other := wanted.params.get("base_model")) is not None and other != base.get("base_model"):
        raise BadRequest(
            f"Name the base once: 'model' is {wanted.model!r}, and the parameter 'base_model' {other!r}.",
            param="params.base_model",
            code="invalid_value",
        )
    inputs["training_data"] = wanted.training_file
    if wanted.validation_file is not None:
        inputs["validation_data"] = wanted.validation_file
    params = check_params(SftParams, {**_hyperparameters(wanted), **base, **wanted.params})
    output, kind = wanted.output or _output(wanted.model, wanted.suffix), output_kind("sft", params)
    check_output(here, caller, output, kind)
    return JobSpec(
        type="sft",
        name=wanted.suffix or "",
        inputs=pin_inputs(here, caller.tenant, SFT, inputs, FIELDS),
        params=params.model_dump(mode="json"),
        resources=resources_for(SFT, wanted.resources),
        output=output,
        output_kind=kind,
        priority=wanted.priority,
        labels=check_labels(wanted.metadata or {}, "metadata"),
    )


def _base(here: Gateway, caller: Principal, model: str) -> tuple[dict[str, str], dict[str, str]]:
    """The base as an input, where it is an artifact; else as the parameter `base_model`."""
    if found := here.view.artifacts.find(caller.tenant, model):
        if found.kind is not ArtifactKind.model:
            raise BadRequest(
                f"{model!r} is {found.kind.one}; a model is needed here.", param="model", code="wrong_kind"
            )
        return {"model": found.pin.ref}, {}
    if deployed := here.view.deployments.find(caller.tenant, model):
        return {"model": deployed.spec.model.ref}, {}
    if not is_folder(model) and model.count("/") != 1:
        raise no_such_model(model, "model")
    check_source(here.settings, model, "model")
    return {}, {"base_model": model}


def _hyperparameters(wanted: WantedTuning) -> dict[str, Any]:
    params: dict[str, Any] = {}
    if wanted.seed is not None:
        params["seed"] = wanted.seed
    if wanted.hyperparameters:
        params |= wanted.hyperparameters.params()
    if wanted.method:
        params |= wanted.method.supervised.hyperparameters.params()
    return params


def _output(model: str, suffix: str | None) -> str:
    """`smollm2-support` for the suffix `support`, `smollm2-ft` without one."""
    base = split_ref(model.rstrip("/").rsplit("/", 1)[-1])[0]
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in base)
    ending = suffix or "ft"
    return f"{kept.strip('.-_')[: LONGEST_NAME - len(ending) - 1] or 'model'}-{ending}".replace("..", ".")
