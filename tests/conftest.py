"""Shared by all tests: fixed seeds, the devices, and both paths of the package under one name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from histloss import native

collect_ignore = ["browser", "emulation"]  # need what make test-browser and make test-cuda-emulated bring


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Run a test on the CPU or, with `pytest -m cuda`, on a GPU, where what it makes is made by default.

    Without a GPU or without kernels for it, `pytest -m cuda` ends at once: nothing is skipped in silence.
    """
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        pytest.exit(f"pytest -m cuda needs a GPU, and torch {torch.__version__} sees none", returncode=1)
    device = torch.device(request.param, torch.cuda.current_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are none, which is what is asked
        available = native.available(torch.empty(0, device=device))
    if not available:
        pytest.exit(f"there are no kernels for {device}: {native.backend_info()}", returncode=1)
    torch.set_default_device(device)
    yield device
    torch.set_default_device(None)


@pytest.fixture(params=["native", "reference"])
def path(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
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
