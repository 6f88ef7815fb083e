"""What the README shows is run as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import openai
import pytest

from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import JobStatus
from tests.ground import Ground
from tests.integration.gateway_world import KEY, GatewayWorld
from tests.waiting import eventually

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def test_the_python_snippet_runs_as_it_stands(tmp_path: Path, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the question to the adapter, which says that nothing is deployed here."""
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    assert ADDRESS in found[1]
    home = tmp_path / "home"
    (home / ".llmos").mkdir(parents=True)
    (home / ".llmos/key").write_text(f"{KEY}\n")  # as an editor, or an older version, leaves it
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)

    world = GatewayWorld(tmp_path / "gateway", ground)
    try:
        with world.gateway() as here:
            base = world.registry.put("my-model", ArtifactKind.model, {"model.safetensors": b"weights"})
            eventually(lambda: here.http.get(f"/v1/artifacts/{base.ref}").status_code == 200)
            snippet = ast.parse(found[1].replace(ADDRESS, here.url))
            question = ast.Module([snippet.body.pop()], [])
            names: dict[str, object] = {}
            exec(compile(snippet, str(README), "exec"), names)

            [job_id] = eventually(lambda: list(world.scheduler.jobs))
            assert world.scheduler.jobs[job_id].spec.inputs["model"].ref == base.ref
            adapter = world.registry.put("my-model-support", ArtifactKind.adapter, {"adapter.safetensors": b"a"})
            world.scheduler.move(job_id, JobStatus.succeeded, outputs=[adapter])
            eventually(lambda: here.job(job_id)["status"] == "succeeded")
            with pytest.raises(openai.NotFoundError, match=adapter.ref):
                exec(compile(question, str(README), "exec"), names)
            names["client"].close()  # type: ignore[attr-defined]
    finally:
        world.close()
