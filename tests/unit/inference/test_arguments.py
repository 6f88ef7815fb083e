"""From `engine_args` to vLLM's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.inference.control import ReplicaSpec
from services.inference.engines import EngineRefused, opener
from services.inference.engines.arguments import command_line, flags, lora_rank, processor_has_bf16


def spec(devices: list[int] | None = None, max_loras: int = 0, rank: int = 64, **engine_args: Any) -> ReplicaSpec:
    return ReplicaSpec(
        replica_id="r1",
        served_name="m@1",
        model_folder="/models/m",
        engine="vllm",
        engine_args=engine_args,
        max_loras=max_loras,
        max_lora_rank=rank,
        max_queue=1,
        threads=1,
        devices=devices or [],
        restarts=0,
        cache_folder="/cache",
    )


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_arguments_are_handed_on_in_vllms_spelling() -> None:
    given = {"max_model_len": 2048, "enforce_eager": True, "enable_prefix_caching": False, "seed": None}
    assert flags(given) == ["--max-model-len", "2048", "--enforce-eager", "--no-enable-prefix-caching"]
    assert flags({"a": ["x", 1], "b": {"k": 1}}) == ["--a", "x", "1", "--b", '{"k": 1}']


def test_the_served_name_is_the_version_and_adapters_get_room() -> None:
    argv = command_line(spec(max_loras=3), on_cpu=True, has_bf16=True)
    assert value_of(argv, "--served-model-name") == "m@1"
    assert (value_of(argv, "--max-loras"), value_of(argv, "--max-lora-rank")) == ("3", "64")
    assert "--enable-lora" not in command_line(spec(), on_cpu=True, has_bf16=True)


@pytest.mark.parametrize(("wanted", "given"), [(1, 1), (2, 8), (64, 64), (65, 128), (300, 320), (512, 512)])
def test_a_rank_between_two_is_served_by_the_larger(wanted: int, given: int) -> None:
    assert lora_rank(spec(rank=wanted)) == given


def test_a_cpu_without_bf16_serves_in_fp32() -> None:
    assert value_of(command_line(spec(), on_cpu=True, has_bf16=False), "--dtype") == "float32"
    assert value_of(command_line(spec(), on_cpu=True, has_bf16=True), "--dtype") == "auto"


def test_what_the_deployment_says_wins_over_the_defaults() -> None:
    argv = command_line(spec(dtype="float16", gpu_memory_utilization=0.3), on_cpu=True, has_bf16=False)
    assert argv.count("--dtype") == 1
    assert value_of(argv, "--dtype") == "float16"
    assert "--kv-cache-memory-bytes" not in argv


def test_several_accelerators_share_the_model() -> None:
    assert value_of(command_line(spec([0, 1]), on_cpu=False, has_bf16=True), "--tensor-parallel-size") == "2"
    assert "--tensor-parallel-size" not in command_line(spec([3]), on_cpu=False, has_bf16=True)


@pytest.mark.parametrize("name", ["model", "served_model_name", "port", "api-key", "max_loras"])
def test_what_the_deployment_itself_decides_is_refused_by_name(name: str) -> None:
    with pytest.raises(EngineRefused, match=name.replace("-", "_")):
        command_line(msgspec.structs.replace(spec(), engine_args={name: "x"}), on_cpu=True, has_bf16=True)


def test_an_unknown_engine_is_refused_by_name() -> None:
    with pytest.raises(EngineRefused, match="'sglang'"):
        opener("sglang")


@pytest.mark.parametrize(("flags_line", "has"), [("flags : avx2 avx512_bf16", True), ("flags : avx2 avx512f", False)])
def test_the_processor_is_asked_for_bf16(tmp_path: Path, flags_line: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags_line}\n")
    assert processor_has_bf16(tmp_path / "cpuinfo") is has
    assert processor_has_bf16(tmp_path / "absent") is False
