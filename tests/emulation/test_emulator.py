"""The emulator itself: what the primitives return, and that it finds the faults seeded in faults.cu."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import emulated_faults
import pytest

BUILD = Path(emulated_faults.__file__).parents[1]

pytestmark = pytest.mark.variants("plain")  # starts the sanitizers itself

# What must find each fault: wrong values under some schedule, a sanitizer, or the emulator's own words.
FOUND_BY = {
    "missing_syncthreads": ("values", "tsan"),
    "missing_syncwarp": ("tsan",),
    "plain_add": ("tsan",),
    "shared_index": ("asan",),
    "global_index": ("asan",),
    "misaligned_vector": ("asan",),
    "blocks_race": ("tsan",),
    "divergent_barrier": ("a divergent barrier",),
    "barrier_after_exit": ("left the kernel",),
    "shuffle_with_exited_lane": ("has exited",),
    "shuffle_from_outside_the_mask": ("reads a lane that is not in its mask",),
    "caller_outside_the_mask": ("by a lane that is not in its mask",),
    "different_primitives": ("waits in",),
    "deadlock": ("deadlock",),
}
REPORTS = {
    "asan": ("AddressSanitizer: heap-buffer-overflow", "runtime error: store to misaligned address"),
    "tsan": ("ThreadSanitizer: data race",),
}
SEEDS = range(8)


def test_every_fault_is_listed() -> None:
    assert sorted(FOUND_BY) == sorted(emulated_faults.names())


@pytest.mark.parametrize("fault", [f for f, by in FOUND_BY.items() if "values" in by])
def test_a_random_schedule_finds(fault: str) -> None:
    correct = {tuple(emulated_faults.run(fault, False, seed)) for seed in SEEDS}
    assert len(correct) == 1
    faulty = {tuple(emulated_faults.run(fault, True, seed)) for seed in SEEDS}
    assert faulty - correct


@pytest.mark.parametrize("fault", [f for f, by in FOUND_BY.items() if " " in by[0] or by[0] == "deadlock"])
def test_the_emulator_finds(fault: str) -> None:
    for seed in SEEDS:
        emulated_faults.run(fault, False, seed)
        with pytest.raises(RuntimeError, match=rf"{FOUND_BY[fault][0]}.*faults\.cu:\d+ in void .*{fault}"):
            emulated_faults.run(fault, True, seed)


@pytest.mark.parametrize("variant", ["asan", "tsan"])
@pytest.mark.parametrize("fault", FOUND_BY)
def test_a_sanitizer_finds(fault: str, variant: str) -> None:
    """The correct twin passes under both; the faulty one ends the process of those that are to find it."""
    assert sanitized(variant, fault, faulty=False) == ""
    if variant in FOUND_BY[fault]:
        report = sanitized(variant, fault, faulty=True)
        assert any(text in report for text in REPORTS[variant]), report
        assert f"{fault}<true>" in report


def sanitized(variant: str, fault: str, *, faulty: bool) -> str:
    """What a process that runs the kernel writes to stderr."""
    libraries = [find_library(name) for name in {"asan": ("asan", "stdc++"), "tsan": ("tsan",)}[variant]]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(BUILD / variant),
    }
    script = f"import emulated_faults; emulated_faults.run({fault!r}, {faulty}, 1)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == (done.stderr != "")
    return done.stderr


def find_library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    return subprocess.check_output([compiler, f"-print-file-name=lib{name}.so"], text=True).strip()


# ---- what correct kernels get ---------------------------------------------------------------------


def test_primitives() -> None:
    out, all_lanes = emulated_faults.primitives(), range(32)

    def bits(lanes: list[int]) -> int:
        number = sum(1 << i for i in lanes)
        return number - (1 << 32) if number >= 1 << 31 else number

    for i in all_lanes:
        assert out[16 * i : 16 * i + 12] == [
            i // 8 * 8 + 3,
            i - 3 if i % 8 >= 3 else i,
            i + 3 if i % 16 < 13 else i,
            i ^ 5,
            bits([j for j in all_lanes if j % 3 == 0]),
            1,
            0,
            bits([j for j in all_lanes if j % 4 == i % 4]),
            -sum(all_lanes),
            -1,
            6,
            bits([j for j in all_lanes if j % 2 and j > 16]) if i % 2 else 0,
        ]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (2.5, (2, 2, 2, 2, 2, 2)),
        (-3.5, (-4, 0, -4, 0, 0, -4)),
        (1e20, (2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**64 - 1, 2**31 - 1)),
        (math.nan, (0, 0, -(2**63), 2**63, 2**63, 0)),
    ],
)
def test_conversions_to_integers(x: float, expected: tuple[int, ...]) -> None:
    assert emulated_faults.floats_to_ints(x) == expected


def test_conversions_to_half_precision() -> None:
    assert emulated_faults.halves(0.1) == (0.0999755859375, 0.10009765625)
    assert emulated_faults.halves(1e5) == (math.inf, 99840.0)
    assert all(math.isnan(half) for half in emulated_faults.halves(math.nan))


@pytest.mark.parametrize(
    ("blocks", "threads", "shared_bytes", "allowed", "refused"),
    [
        ((1, 65536, 1), (64, 1, 1), 0, 0, "a grid of"),
        ((0, 1, 1), (64, 1, 1), 0, 0, "a grid of"),
        ((1, 1, 1), (1025, 1, 1), 0, 0, "a block of"),
        ((1, 1, 1), (1, 1, 65), 0, 0, "a block of"),
        ((1, 1, 1), (64, 1, 1), (48 << 10) + 1, 0, "49152 are allowed"),
        ((1, 1, 1), (64, 1, 1), 60001, 60000, "60000 are allowed"),
        ((1, 1, 1), (64, 1, 1), 0, (227 << 10) + 1, "cudaFuncSetAttribute"),
        ((1, 1, 1), (64, 1, 1), 227 << 10, 227 << 10, None),
    ],
)
def test_launches_that_a_gpu_refuses(
    blocks: tuple[int, ...], threads: tuple[int, ...], shared_bytes: int, allowed: int, refused: str | None
) -> None:
    if refused is None:
        emulated_faults.try_launch(blocks, threads, shared_bytes, allowed)
    else:
        with pytest.raises(RuntimeError, match=refused):
            emulated_faults.try_launch(blocks, threads, shared_bytes, allowed)
