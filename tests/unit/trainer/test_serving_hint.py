"""A model that no CPU can serve is warned of before it is trained, not after."""

from __future__ import annotations

import pytest

from services.trainer.recipes.pretrain import SERVED_ON_CPU, hint_on_serving
from shared.contracts.recipes import PretrainParams


@pytest.mark.parametrize(("hidden_size", "heads", "warned"), [(256, 4, False), (64, 2, False), (32, 2, True)])
def test_heads_that_vllm_has_no_kernel_for_are_named(hidden_size: int, heads: int, warned: bool) -> None:
    hint = hint_on_serving(PretrainParams(hidden_size=hidden_size, heads=heads))
    assert bool(hint) is warned
    assert not warned or "16 wide" in hint


def test_the_sizes_are_those_of_the_installed_vllm() -> None:
    attention = pytest.importorskip("vllm.v1.attention.backends.cpu_attn", reason="pip install '.[cpu]' brings vLLM")
    assert tuple(attention.CPUAttentionBackend.get_supported_head_sizes()) == SERVED_ON_CPU
