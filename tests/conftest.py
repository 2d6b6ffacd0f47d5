"""Shared by all tests: fixed seeds, and both paths of the package under one name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from histloss import native

settings.register_profile(
    "histloss",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("histloss")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["native", "reference"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test of a public function on the native kernels and on the reference they replace."""
    if request.param == "reference":
        monkeypatch.setattr(native, "available", lambda x: False)
    else:
        assert native.available(torch.empty(0)), native.backend_info()
    return request.param


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that set torch's number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
