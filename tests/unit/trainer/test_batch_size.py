"""Batches are as large as memory, speed and the data allow, and become smaller without changing what is learnt."""

from __future__ import annotations

import math

import pytest

from services.trainer.recipes.batch_size import BatchSize, Machine, ModelSize, choose_batch_size
from services.trainer.recipes.splits import held_out, held_out_count

SMALL = ModelSize(parameters=10**8, trainable=5 * 10**6, layers=30, hidden=576, intermediate=1536, vocabulary=49_152)
LAPTOP = Machine(accelerator=False, free_bytes=8 * 2**30)
CARD = Machine(accelerator=True, free_bytes=80 * 2**30)


def chosen(rows: int = 10_000, machine: Machine = LAPTOP, dtype: str = "bfloat16", epochs: float = 1.0) -> BatchSize:
    return choose_batch_size("auto", 1, rows, 256, epochs, dtype, SMALL, machine)


def test_a_number_is_kept() -> None:
    assert choose_batch_size(6, 2, 10, 256, 1, "float32", SMALL, LAPTOP) == BatchSize(6, 2, "6, as asked")


def test_a_processor_gets_what_makes_it_fast() -> None:
    assert chosen(dtype="bfloat16").batch_size == 4
    assert chosen(dtype="float32").batch_size == 2


def test_an_accelerator_gets_what_fits() -> None:
    roomy, tight = chosen(machine=CARD), chosen(machine=Machine(accelerator=True, free_bytes=8 * 2**30))
    assert roomy.batch_size > tight.batch_size > 1
    assert "do not fit" in tight.reason


def test_few_samples_still_make_many_steps() -> None:
    few = chosen(rows=64, machine=CARD)
    assert few.batch_size == 2
    assert "fewer than 30 steps" in few.reason


def test_no_memory_still_means_one_row() -> None:
    assert chosen(machine=Machine(accelerator=False, free_bytes=0)).batch_size == 1


def test_a_step_is_never_larger_than_the_data() -> None:
    assert chosen(rows=3, machine=CARD, epochs=math.inf).batch_size == 2


@pytest.mark.parametrize("first", [BatchSize(8, 1, ""), BatchSize(6, 2, ""), BatchSize(1, 4, "")])
def test_smaller_batches_make_the_same_step_until_none_is_left(first: BatchSize) -> None:
    batch: BatchSize | None = first
    seen = []
    while batch is not None:
        seen.append(batch)
        batch = batch.smaller()
    assert all(other.batch_size * other.accumulation >= first.batch_size * first.accumulation for other in seen)
    assert seen[-1].batch_size == 1
    assert [other.checkpointing for other in seen] == [False] * (len(seen) - 1) + [True]


def test_the_same_seed_holds_out_the_same_samples() -> None:
    assert held_out(100, 0.05, seed=1) == held_out(100, 0.05, seed=1) != held_out(100, 0.05, seed=2)


def test_more_than_ten_samples_hold_out_at_least_one() -> None:
    assert [held_out_count(count, 0.01) for count in (1, 10, 11, 1000)] == [0, 0, 1, 10]
    assert held_out_count(11, 0.0) == 0
