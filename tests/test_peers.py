"""Every defect known of other histogram losses, and what their users ask for, as a test of this one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import histloss
from asserters import assert_value
from devices import on_cpu
from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, native
from histloss.reference import MI_MODES

pytestmark = pytest.mark.usefixtures("device")


class Outputs(TorchDispatchMode):
    """Records every tensor that an op makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.dtypes: set[torch.dtype] = set()
        self.largest = 0  # elements of real memory, so that an expanded view counts once

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.dtypes.add(tensor.dtype)
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def total_loss(out: Tensor, src: Tensor, bins: int = 64) -> Tensor:
    """Everything at once: both presets, on histograms of `src` as the target."""
    total = out.new_zeros(())
    for preset in ("paper", "official"):
        forms = {"paper": ("squared", "relative"), "official": ("norm", "conditional_entropy")}[preset]
        emd, mi = EMDHistLoss(bins, form=forms[0]), MIHistLoss(bins, mode=forms[1])
        target = histloss.soft_histogram(src, bins=bins).detach()
        total = total + DeepHistLoss(preset=preset, emd=emd, mi=mi)(out, src, target).total
    return total


def images(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return tuple((torch.rand(shape) * 2 - 1).to(dtype) for _ in range(2))  # type: ignore[return-value]


# ---- MONAI ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("mode", MI_MODES)
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.003, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_constant_image_gives_no_nan(dtype: torch.dtype, value: float, mode: str) -> None:
    """MONAI #9018: GlobalMutualInformationLoss with B-splines is NaN on a constant image."""
    constant = torch.full((1, 2, 12, 12), value, dtype=dtype).requires_grad_()
    for other in (constant.detach(), images(1, 2, 12, 12, dtype=dtype)[0]):
        for pair in ((constant, other), (other, constant)):
            loss = MIHistLoss(64, mode=mode)(*pair)
            (grad,) = torch.autograd.grad(loss, [constant])
            assert bool(loss.isfinite() & grad.isfinite().all())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MI_MODES)
def test_autocast_gives_no_infinity(device: torch.device, mode: str, low: torch.dtype) -> None:
    """MONAI #7622: GlobalMutualInformationLoss is -inf under autocast, its joint histogram being float16."""
    x, y = images(1, 1, 64, 64)
    out = x.to(low).requires_grad_()
    with torch.autocast(device.type, dtype=low):
        loss = MIHistLoss(mode=mode)(out, y)
    (grad,) = torch.autograd.grad(loss, [out])
    assert loss.dtype == torch.float32
    assert torch.equal(loss, MIHistLoss(mode=mode)(out.detach().float(), y))
    assert bool(grad.isfinite().all() & (grad != 0).any())


@pytest.mark.usefixtures("path")
def test_a_bright_image_does_not_change_its_neighbours() -> None:
    """MONAI GlobalMutualInformationLoss takes its range from the whole batch."""
    x, y = images(3, 2, 16, 16)
    loss = MIHistLoss(32, reduction="none")
    before = loss(x, y)
    x[1] *= 50
    after = loss(x, y)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


# ---- kornia ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_black_and_white_pixels_keep_their_mass(level: float) -> None:
    """kornia image_histogram2d: the brightest pixel has no mass, and an all-black image sums to one half.

    Also kornia #1217: counts that do not sum to the number of pixels.
    """
    x = torch.full((1, 1, 8, 8), level)
    h = histloss.soft_histogram(x)
    assert h.sum().item() == pytest.approx(1, abs=1e-6)
    assert h.argmax().item() == (0 if level < 0 else 255)
    assert histloss.joint_histogram(x, -x).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("bandwidth", [0.05, 0.4, 1.0, 3.0])
def test_the_bandwidth_does_not_move_the_bins(bandwidth: float) -> None:
    """kornia histogram2d: a pixel's bin depends on the bandwidth."""
    for k in (50, 64, 80):
        centre = -1 + 2 / 128 * (k + 0.5)
        h = histloss.soft_histogram(torch.full((1, 1, 1), centre), bins=128, bandwidth=bandwidth)[
            0, 0
        ].double()
        assert h.argmax().item() == k
        assert (h @ torch.arange(128, dtype=torch.float64)).item() == pytest.approx(k, abs=1e-3)


@pytest.mark.usefixtures("path")
def test_masks_and_soft_masks_have_gradients() -> None:
    """kornia #3575, ANTs #1437: users ask for masks."""
    x, y = images(2, 1, 10, 10)
    mask = torch.sigmoid(torch.randn(2, 1, 10, 10)).requires_grad_()
    for loss in (
        EMDHistLoss(16)(x, histloss.soft_histogram(y, bins=16), weight=mask),
        MIHistLoss(16)(x, y, weight=mask),
    ):
        (grad,) = torch.autograd.grad(loss, [mask])
        assert bool(grad.isfinite().all() & (grad != 0).all())


# ---- HueNet-Pytorch -------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("form", ["squared", "norm"])
def test_equal_images_are_at_rest(form: str, cyclic: bool) -> None:
    """HueNet-Pytorch: the gradient is NaN where both images are equal, the root's slope being infinite."""
    x = images(2, 3, 9, 9)[0].requires_grad_()
    boundary = "cyclic" if cyclic else "reflect"
    loss = EMDHistLoss(32, boundary=boundary, form=form, cyclic=cyclic)
    distance = loss(x, histloss.soft_histogram(x.detach(), **loss.binning))
    (grad,) = torch.autograd.grad(distance, [x])
    assert distance.item() == 0
    assert not grad.any()


def test_little_is_saved_for_the_backward() -> None:
    """HueNet-Pytorch saves 449 MiB of activations per channel at 256 x 256; here less than 2 MiB."""
    assert native.available(torch.empty(0)), native.backend_info()
    x, y = images(1, 1, 256, 256)
    x.requires_grad_()
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = MIHistLoss()(x, y) + EMDHistLoss()(x, histloss.soft_histogram(y))
    assert x.untyped_storage().data_ptr() in saved  # the hooks do see what the ops save
    assert sum(saved.values()) < 2 * 2**20
    assert torch.autograd.grad(loss, [x])[0].isfinite().all()


# ---- FireANTs -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
def test_the_gradient_reaches_every_channel() -> None:
    """FireANTs' fused mutual information: the backward reaches only the first channel."""
    x, y = images(2, 5, 11, 13)
    x.requires_grad_()
    for loss in (MIHistLoss(16)(x, y), EMDHistLoss(16)(x, histloss.soft_histogram(y, bins=16))):
        (grad,) = torch.autograd.grad(loss, [x])
        assert bool((grad != 0).flatten(2).any(-1).all())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("bins", [1, 3, 33, 100, 255, 257])
def test_any_number_of_bins(bins: int) -> None:
    """FireANTs' fused mutual information: bins must be a power of two."""
    x, y = images(1, 1, 7, 7)
    joint = histloss.joint_histogram(x, y, bins=bins)
    assert joint.shape == (1, 1, bins, bins)
    assert joint.sum().item() == pytest.approx(1, abs=1e-5)


@on_cpu
def test_no_value_is_read_back_and_no_device_is_assumed() -> None:
    """FireANTs synchronises inside forward, HistoGAN fixes device="cuda". Meta tensors hold no values."""
    out = torch.empty(2, 3, 8, 8, device="meta").requires_grad_()
    src, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(8, 8, device="meta")
    loss = total_loss(out, src) + MIHistLoss(8)(out, src, weight=weight)
    (grad,) = torch.autograd.grad(loss, [out])
    assert (loss.device.type, grad.device.type, grad.shape) == ("meta", "meta", out.shape)


# ---- HistoGAN -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_no_float64_by_accident(dtype: torch.dtype) -> None:
    """HistoGAN's histogram block computes in float64 whatever comes in."""
    x, y = images(1, 2, 8, 8, dtype=dtype)
    x.requires_grad_()
    with Outputs() as outputs:
        torch.autograd.grad(total_loss(x, y), [x])
    assert torch.float64 not in outputs.dtypes


@pytest.mark.usefixtures("path")
def test_no_loop_over_the_batch() -> None:
    """HistoGAN's histogram block loops over the batch in Python."""
    calls = []
    for batch in (1, 6):
        x, y = images(batch, 2, 8, 8)
        x.requires_grad_()
        with Outputs() as outputs:
            torch.autograd.grad(total_loss(x, y), [x])
        calls.append(outputs.calls)
    assert calls[0] == calls[1]


def test_no_activation_map_is_made() -> None:
    """HistoGAN #8, voxelmorph #324: out of memory, from tensors of pixels x bins."""
    assert native.available(torch.empty(0)), native.backend_info()
    pixels, bins = 128 * 128, 64
    x, y = images(1, 1, 128, 128)
    weight = torch.rand(128, 128).requires_grad_()
    x.requires_grad_()
    with Outputs() as outputs:
        loss = total_loss(x, y, bins) + MIHistLoss(bins)(x, y, weight=weight)
        torch.autograd.grad(loss, [x, weight])
    assert outputs.largest <= 2 * max(pixels, bins**2)


# ---- torch.histc, and what users ask for ----------------------------------------------------------


@pytest.mark.usefixtures("path")
def test_a_histogram_with_a_gradient() -> None:
    """torch.histc has none (LYT-Net #16, kornia #790). Here it is what a narrow kernel converges to."""
    x = images(1, 1, 50, 50)[0]
    edges = (x + 1) * 8
    x = x[(edges - edges.round()).abs() > 0.02][None, None].requires_grad_()  # clear of the edges of 16 bins
    counts = torch.histc(x.detach(), bins=16, min=-1, max=1)
    h = histloss.soft_histogram(x, bins=16, bandwidth=0.001)
    torch.testing.assert_close(h[0, 0] * x.numel(), counts, rtol=1e-5, atol=1e-4)
    h = histloss.soft_histogram(x, bins=16)
    (grad,) = torch.autograd.grad(histloss.emd(h, h.detach().flip(-1)).sum(), [x])
    assert bool((grad != 0).any())


@pytest.mark.usefixtures("path")
def test_the_gradient_leads_somewhere() -> None:
    """LYT-Net #16: a histogram loss that trains nothing. This one moves an image to the target's colours."""
    dark, bright = torch.rand(1, 1, 16, 16) * 0.5 - 0.9, torch.rand(1, 1, 16, 16) * 0.5 + 0.2
    loss = EMDHistLoss(32)
    target = histloss.soft_histogram(bright, **loss.binning)
    x, start = dark.requires_grad_(), loss(dark, target).item()
    optimiser = torch.optim.Adam([x], lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        loss(x, target).backward()
        optimiser.step()
    assert loss(x, target).item() < start / 20


@pytest.mark.usefixtures("path")
def test_volumes() -> None:
    """pytorch-mutual-information #6, voxelmorph #259: users ask for 3-D."""
    x, y = images(1, 2, 4, 5, 6)
    flat_x, flat_y = x.flatten(2), y.flatten(2)
    assert torch.equal(MIHistLoss(16)(x, y), MIHistLoss(16)(flat_x, flat_y))
    assert torch.equal(histloss.soft_histogram(x), histloss.soft_histogram(flat_x))


@pytest.mark.usefixtures("path")
def test_the_same_bits_every_time() -> None:
    """torchvision #7579: a result that changes from run to run."""
    x, y = images(2, 2, 64, 64)
    x.requires_grad_()
    first: tuple[Tensor, ...] | None = None
    for _ in range(3):
        loss = total_loss(x, y)
        results = (loss, *torch.autograd.grad(loss, [x]))
        first = first or results
        assert all(torch.equal(a, b) for a, b in zip(results, first, strict=True))


@on_cpu
def test_more_than_two_to_the_31_pixels() -> None:
    """onnxruntime #28107: 32-bit offsets overflow. Pages that nobody wrote to take no memory."""
    assert native.available(torch.empty(0)), native.backend_info()
    x = torch.from_numpy(np.zeros((2**16 + 1, 1, 2**15), dtype=np.float16))
    x[-1] = 0.5
    h = histloss.soft_histogram(x, bins=4, range=(0, 1))
    expected = histloss.soft_histogram(
        torch.tensor([[[0.0]], [[0.5]]], dtype=torch.float64), bins=4, range=(0, 1)
    )
    assert_value(h[[0, -1]], expected)
