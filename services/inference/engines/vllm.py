"""vLLM's own ASGI application, built in this process and called without a socket.

It is vLLM's `api_server` up to the point where that would listen: every field that vLLM knows works, today's and
tomorrow's. vllm is imported only when a replica opens it; what must be in the environment before is set here.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from pydantic import ValidationError

from services.inference.control import MAX_REASON, ReplicaSpec
from services.inference.domain import error_in_log
from services.inference.engines import AdapterRefused, AsgiApp, Engine, EngineRefused, OnPhase
from services.inference.engines.amx import allow_amx
from services.inference.engines.arguments import command_line, processor_has_bf16
from services.inference.log_tail import log_tail
from shared.processes import children_die_with_us

NO_CHAT_TEMPLATE = (
    "This model has no chat template, so it takes no chats: ask it to go on with a text, at /v1/completions "
    "(llmos complete), or deploy it with vLLM's argument chat_template"
)
KILLED = "its process was killed or ended without a word; if the machine ran out of memory, deploy a smaller model"


@asynccontextmanager
async def open_vllm(spec: ReplicaSpec, on_phase: OnPhase) -> AsyncIterator[Engine]:
    """Start vLLM's engine and build its application. Raises EngineRefused when it can never start as specified."""
    said = Said(Path(spec.log_file))
    on_phase("importing vLLM", 2)
    on_cpu = not spec.devices
    os.environ.update(environment(spec, on_cpu=on_cpu))
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client_from_engine_args
    from vllm.entrypoints.launchers.app import build_app

    on_phase("reading the model's configuration", 35)
    args = parse(command_line(spec, on_cpu=on_cpu, has_bf16=processor_has_bf16()))
    if on_cpu:
        allow_amx()
        _inspect_models_here()
    _name_the_way_without_a_chat_template()
    engine_args = _engine_args(args, fork=on_cpu and spec.restarts == 0)
    on_phase("loading the weights", 40)
    async with build_async_engine_client_from_engine_args(engine_args) as client:
        on_phase("building the application", 95)
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        # What is there now stays: the collector need not look at it again at every generation.
        gc.collect()
        gc.freeze()
        yield VllmEngine(app, client, spec, tasks, said)


class Said:
    """What this replica's log says since the start: vLLM tells only there why its engine's process has ended."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._from = log.stat().st_size if log.is_file() else 0

    def last_error(self) -> str:
        return error_in_log(log_tail(self._log, self._from)) if self._log.is_file() else ""


class VllmEngine:
    """A running vLLM."""

    def __init__(self, app: Any, client: Any, spec: ReplicaSpec, tasks: Collection[str], said: Said) -> None:
        self.app: AsgiApp = app
        self.trial = _trial(spec.served_name, tasks)
        self.client = client
        self.max_model_len: int | None = client.model_config.max_model_len
        self.slots: int = client.vllm_config.scheduler_config.max_num_seqs
        self._said = said
        self._problem = ""
        app.state.server = (
            SimpleNamespace()
        )  # which vLLM tells to exit when its engine is dead; `problem` tells it here

    def problem(self) -> str:
        if not self._problem and self.client.errored:
            self._problem = f"vLLM's engine has stopped: {self._said.last_error() or KILLED}"[:MAX_REASON]
        return self._problem

    async def load_adapter(self, ref: str, folder: Path) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        if self.client.vllm_config.lora_config is None:
            raise AdapterRefused("the deployment has max_loras=0: deploy it with room for adapters")
        request = LoadLoRAAdapterRequest(lora_name=ref, lora_path=str(folder))
        _raise_refused(await self.app.state.openai_serving_models.load_lora_adapter(request))  # type: ignore[attr-defined]

    async def unload_adapter(self, ref: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        # vLLM drops the name; the weights leave its slot when another adapter needs it.
        request = UnloadLoRAAdapterRequest(lora_name=ref)
        _raise_refused(await self.app.state.openai_serving_models.unload_lora_adapter(request))  # type: ignore[attr-defined]


def environment(spec: ReplicaSpec, *, on_cpu: bool) -> dict[str, str]:
    """What vLLM and torch read from the environment, at import."""
    always = {
        "HF_HUB_OFFLINE": "1",  # the model lies in a folder: nothing may be fetched
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": spec.cache_folder,
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not on_cpu:
        return {**always, "CUDA_VISIBLE_DEVICES": ",".join(map(str, spec.devices))}
    one_process = not {"tensor_parallel_size", "pipeline_parallel_size"} & spec.engine_args.keys()
    return {
        **always,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(spec.threads),
        "VLLM_HOST_IP": "127.0.0.1",
        # The worker lives in the engine's process: one import, 0.7 GB and one hop per step less.
        **({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if one_process else {}),
    }


def _trial(model: str, tasks: Collection[str]) -> tuple[str, dict[str, Any]] | None:
    """One token of the base model, as a number: that needs no tokenizer."""
    if "generate" in tasks:
        return "/v1/completions", {"model": model, "prompt": [0], "max_tokens": 1}
    if "embed" in tasks:
        return "/v1/embeddings", {"model": model, "input": [0]}
    return None


def parse(argv: list[str]) -> Any:
    """vLLM's own reading of its command line. Raises EngineRefused with vLLM's sentence, which names the argument."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise EngineRefused(f"vLLM refuses the engine_args: {message}")

    args = make_arg_parser(Parser()).parse_args(argv)
    try:
        validate_parsed_serve_args(args)
    except (ValueError, TypeError) as error:
        raise EngineRefused(f"vLLM refuses the engine_args: {error}") from error
    return args


def _inspect_models_here() -> None:
    """vLLM looks at a model's class in a new process, so that CUDA stays untouched in this one; without CUDA that is
    10 s of importing for nothing."""
    from vllm.model_executor.models import registry

    setattr(registry, "_run_in_subprocess", lambda inspect: inspect())  # noqa: B010


def _name_the_way_without_a_chat_template() -> None:
    """vLLM's own sentence speaks of a version of transformers, to people who may never have heard of it."""
    from vllm.renderers import hf

    class NoChatTemplate(hf.ChatTemplateResolutionError):  # type: ignore[misc]
        def __init__(self, *_: object) -> None:
            super().__init__(NO_CHAT_TEMPLATE)

    setattr(hf, "ChatTemplateResolutionError", NoChatTemplate)  # noqa: B010


def _engine_args(args: Any, *, fork: bool) -> Any:
    """vLLM's engine arguments. With `fork`, the engine's process starts as a copy of this one, which has imported
    everything already (8 s less); a start that failed is repeated with vLLM's own way, `spawn`."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    class EngineArgs(AsyncEngineArgs):  # type: ignore[misc]
        def create_engine_config(self, *positional: Any, **named: Any) -> Any:
            config = _refusing_bad_values(super().create_engine_config, *positional, **named)
            if fork:
                children_die_with_us()
                os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
            return config

    return _refusing_bad_values(EngineArgs.from_cli_args, args)


def _refusing_bad_values(make: Any, *positional: Any, **named: Any) -> Any:
    """What `make` returns; a value that vLLM's checks refuse is the deployment's fault and stays so."""
    try:
        return make(*positional, **named)
    except (ValueError, TypeError, NotImplementedError) as error:  # pydantic's ValidationError is a ValueError
        raise EngineRefused(f"vLLM cannot serve this: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """Of a refused value, each field with its reason; of anything else the first line."""
    if isinstance(error, ValidationError):
        return "; ".join(_refused_value(each["loc"], each["msg"]) for each in error.errors())[:MAX_REASON]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next(
        (line for line in lines if line.startswith("Value error,")), lines[0] if lines else type(error).__name__
    )
    return told.removeprefix("Value error, ").split(" [type=")[0][:MAX_REASON]


def _refused_value(place: tuple[int | str, ...], message: str) -> str:
    """`max_model_len: Input should be greater than 0`; a whole configuration's fault has no place."""
    field = ".".join(map(str, place))
    reason = message.removeprefix("Value error, ")
    return f"{field}: {reason}" if field else reason


def _raise_refused(answer: Any) -> None:
    if not isinstance(answer, str):
        raise AdapterRefused(str(answer.error.message)[:MAX_REASON])
