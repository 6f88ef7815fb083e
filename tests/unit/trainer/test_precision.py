"""The number format follows the processor, and the log says why."""

from pathlib import Path

import pytest

from services.trainer.recipes import precision
from services.trainer.recipes.precision import choose_precision


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cuda_bf16", lambda: None)


def cpuinfo(folder: Path, flags: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: some\nflags\t\t: {flags}\n")
    return file


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_auto_takes_bf16_where_the_processor_has_the_instructions(tmp_path: Path, flag: str) -> None:
    chosen = choose_precision("auto", cpuinfo(tmp_path, f"avx2 {flag}"))
    assert chosen.dtype == "bfloat16"
    assert chosen.bf16
    assert flag in chosen.reason


def test_auto_takes_fp32_where_bf16_would_be_emulated(tmp_path: Path) -> None:
    chosen = choose_precision("auto", cpuinfo(tmp_path, "avx2 avx512f"))
    assert chosen.dtype == "float32"
    assert "avx512_bf16" in chosen.reason


def test_a_system_without_cpuinfo_gets_fp32(tmp_path: Path) -> None:
    assert choose_precision("auto", tmp_path / "none").dtype == "float32"


def test_an_explicit_wish_is_kept_and_warned_about(tmp_path: Path) -> None:
    chosen = choose_precision("bf16", cpuinfo(tmp_path, "avx2"))
    assert chosen.dtype == "bfloat16"
    assert "slow" in chosen.reason
    assert choose_precision("fp32", cpuinfo(tmp_path, "amx_bf16")).dtype == "float32"


def test_a_cuda_device_decides_before_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cuda_bf16", lambda: (False, "Tesla T4 has no bf16 units"))
    chosen = choose_precision("auto", cpuinfo(tmp_path, "amx_bf16"))
    assert chosen.dtype == "float32"
    assert "Tesla T4" in chosen.reason
