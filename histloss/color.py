"""Differentiable colour transforms, every channel of every space mapped to [-1, 1].

Images have shape (B, 3, *spatial), with any number of spatial dimensions. Their values, beside the usual
units of each space:

=====  ========================================================  ===========================================
space  usual units                                               here
=====  ========================================================  ===========================================
RGB    sRGB-encoded R, G, B in [0, 1]                            2 R - 1, 2 G - 1, 2 B - 1
YUV    Y in [0, 1], U in [-0.436, 0.436], V in [-0.615, 0.615]   2 Y - 1, U / 0.436, V / 0.615
HSV    H in turns [0, 1), S and V in [0, 1]                      2 H - 1 (below 1, cyclic), 2 S - 1, 2 V - 1
Lab    L in [0, 100], a and b in [-108, 99] for sRGB             L / 50 - 1, a / 110, b / 110
=====  ========================================================  ===========================================

So the whole RGB cube lies in [-1, 1] in every space, up to rounding: the default range of the histograms.
Values outside the cube are transformed by the same formulas, not clamped.

All functions return float32, or float64 for float64 images: half precision would round by up to half a bin
of 256. A pixel with a NaN or infinite channel becomes NaN in all three, with a zero gradient; histograms
leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import accumulation_dtype, check_color_image

_Channels = tuple[Tensor, Tensor, Tensor]


def rgb_to_yuv(rgb: Tensor) -> Tensor:
    r"""RGB to YUV: analog, full range, with the luma of ITU-R BT.601.

    .. math:: Y = 0.299 R + 0.587 G + 0.114 B, \quad U = \frac{B - Y}{1.772}, \quad V = \frac{R - Y}{1.402}

    with all six values as they are here, in [-1, 1]. The usual U = 0.492 (B - Y) and V = 0.877 (R - Y) are
    each divided by their own maximum, 0.436 and 0.615: 2 V of the usual matrix would reach 1.23.

    Args:
        rgb: image, shape (B, 3, \*spatial), values in [-1, 1].

    Returns:
        Y, U, V in [-1, 1], same shape, float32 or float64. Greys have U = V = 0 up to rounding.

    Raises:
        TypeError, ValueError: rgb is not as described.
    """
    return _pixelwise("rgb", rgb, _rgb_to_yuv)


def yuv_to_rgb(yuv: Tensor) -> Tensor:
    r"""The inverse of :func:`rgb_to_yuv`.

    Args:
        yuv: image, shape (B, 3, \*spatial), Y, U, V in [-1, 1].

    Returns:
        R, G, B, same shape, float32 or float64; outside [-1, 1] for a YUV that no RGB has.

    Raises:
        TypeError, ValueError: yuv is not as described.
    """
    return _pixelwise("yuv", yuv, _yuv_to_rgb)


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    r"""RGB to hue, saturation, value: the hexcone of Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978.

    With R, G, B in [0, 1], M their maximum and D their maximum less their minimum,

    .. math:: V = M, \quad S = \frac{D}{M}, \quad
              6 H = \frac{G - B}{D},\ 2 + \frac{B - R}{D} \text{ or } 4 + \frac{R - G}{D}
              \text{ where } M = R, G \text{ or } B, \text{ modulo } 6.

    H of a grey and S of black are undefined: they are 0 here (-1 as returned), with a zero gradient. The
    slope of H grows as 1 / D towards the greys and that of S as 1 / M towards black, but stays finite.

    Args:
        rgb: image, shape (B, 3, \*spatial), values in [-1, 1].

    Returns:
        2 H - 1 in [-1, 1), 2 S - 1 and 2 V - 1 in [-1, 1], same shape, float32 or float64. Red is at -1,
        green at -1/3, blue at 1/3. Both ends are the same hue: histograms of it want ``boundary="cyclic"``.

    Raises:
        TypeError, ValueError: rgb is not as described.
    """
    return _pixelwise("rgb", rgb, _rgb_to_hsv)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    r"""The inverse of :func:`rgb_to_hsv`.

    With H, S, V in their usual units and k = (n + 6 H) modulo 6,

    .. math:: V - V S \max(0, \min(k, 4 - k, 1)) \quad \text{for } n = 5, 3, 1 \text{ is } R, G, B.

    Args:
        hsv: image, shape (B, 3, \*spatial), values in [-1, 1]; any hue wraps round.

    Returns:
        R, G, B in [-1, 1], same shape, float32 or float64.

    Raises:
        TypeError, ValueError: hsv is not as described.
    """
    return _pixelwise("hsv", hsv, _hsv_to_rgb)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    r"""sRGB to CIE 1976 L*a*b* under D65.

    Decoding is that of IEC 61966-2-1, the matrix that of its primaries and D65 white (0.95047, 1, 1.08883)
    in the digits of Lindbloom. With f the cube root, continued by its tangent below (6/29)^3 (CIE 15),

    .. math:: L = 116 f(Y / Y_n) - 16, \quad a = 500 (f(X / X_n) - f(Y / Y_n)), \quad
              b = 200 (f(Y / Y_n) - f(Z / Z_n)).

    Args:
        rgb: image, shape (B, 3, \*spatial), sRGB values in [-1, 1].

    Returns:
        L / 50 - 1, a / 110, b / 110 in [-1, 1], same shape, float32 or float64. In sRGB a is in [-86.2, 98.3]
        and b in [-107.9, 94.5]; greys have a = b = 0 up to rounding.

    Raises:
        TypeError, ValueError: rgb is not as described.
    """
    return _pixelwise("rgb", rgb, _rgb_to_lab)


def lab_to_rgb(lab: Tensor) -> Tensor:
    r"""The inverse of :func:`rgb_to_lab`.

    Args:
        lab: image, shape (B, 3, \*spatial), L / 50 - 1, a / 110, b / 110.

    Returns:
        sRGB values, same shape, float32 or float64; outside [-1, 1] for a colour that sRGB has not.

    Raises:
        TypeError, ValueError: lab is not as described.
    """
    return _pixelwise("lab", lab, _lab_to_rgb)


def _pixelwise(name: str, x: Tensor, formula: Callable[..., _Channels]) -> Tensor:
    """Check, widen, apply a formula of three channels; non-finite pixels stay outside of it."""
    check_color_image(name, x)
    x = x.to(accumulation_dtype(x.dtype))
    finite = x.isfinite().all(1, keepdim=True)
    channels = torch.where(finite, x, 0.0).unbind(1)
    return torch.where(finite, torch.stack(formula(*channels), 1), math.nan)


_KR, _KG, _KB = 0.299, 0.587, 0.114


def _rgb_to_yuv(r: Tensor, g: Tensor, b: Tensor) -> _Channels:
    y = _KR * r + _KG * g + _KB * b
    return y, (b - y) / (2 - 2 * _KB), (r - y) / (2 - 2 * _KR)


def _yuv_to_rgb(y: Tensor, u: Tensor, v: Tensor) -> _Channels:
    r, b = y + (2 - 2 * _KR) * v, y + (2 - 2 * _KB) * u
    return r, (y - _KR * r - _KB * b) / _KG, b


def _rgb_to_hsv(r: Tensor, g: Tensor, b: Tensor) -> _Channels:
    r, g, b = _unit(r), _unit(g), _unit(b)
    value = torch.maximum(torch.maximum(r, g), b)
    delta = value - torch.minimum(torch.minimum(r, g), b)
    grey, black = delta == 0, value <= 0
    d = torch.where(grey, 1.0, delta)
    sixths = torch.where(value == r, (g - b) / d, torch.where(value == g, 2 + (b - r) / d, 4 + (r - g) / d))
    hue = torch.where(sixths < 0, sixths + 6, sixths) / 6
    hue = torch.where(grey | (hue >= 1), 0.0, hue)  # 6 less a little can round to 6
    saturation = torch.where(black, 0.0, delta / torch.where(black, 1.0, value))
    return _signed(hue), _signed(saturation), _signed(value)


def _hsv_to_rgb(h: Tensor, s: Tensor, v: Tensor) -> _Channels:
    h, s, v = 6 * _unit(h), _unit(s), _unit(v)

    def channel(n: int) -> Tensor:
        k = torch.remainder(n + h, 6)
        return _signed(v - v * s * torch.minimum(k, 4 - k).clamp(0, 1))

    return channel(5), channel(3), channel(1)


AB_UNIT = 110.0  # of a and b; the largest |a| or |b| in sRGB is 107.9
_DELTA = 6 / 29
_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_FROM_LINEAR = [
    [m / sum(row) for m in row] for row in _XYZ
]  # to X / Xn, Y / Yn, Z / Zn: white is R = G = B = 1
_TO_LINEAR = torch.linalg.inv(torch.tensor(_FROM_LINEAR, dtype=torch.float64, device="cpu")).tolist()


def _rgb_to_lab(r: Tensor, g: Tensor, b: Tensor) -> _Channels:
    r, g, b = _decode(_unit(r)), _decode(_unit(g)), _decode(_unit(b))
    x, y, z = (_cube_root(kr * r + kg * g + kb * b) for kr, kg, kb in _FROM_LINEAR)
    return (116 * y - 16) / 50 - 1, 500 * (x - y) / AB_UNIT, 200 * (y - z) / AB_UNIT


def _lab_to_rgb(lightness: Tensor, a: Tensor, b: Tensor) -> _Channels:
    fy = (50 * (lightness + 1) + 16) / 116
    x, y, z = _cube(fy + AB_UNIT * a / 500), _cube(fy), _cube(fy - AB_UNIT * b / 200)
    red, green, blue = (_signed(_encode(kx * x + ky * y + kz * z)) for kx, ky, kz in _TO_LINEAR)
    return red, green, blue


def _decode(c: Tensor) -> Tensor:
    """sRGB to linear light. The power never sees an argument where its slope is infinite, here and below."""
    power = ((c.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4)
    return torch.where(c > 0.04045, power, c / 12.92)


def _encode(c: Tensor) -> Tensor:
    bound = 0.04045 / 12.92  # 0.0031308 in the standard: unrounded, the two functions are exact inverses
    return torch.where(c > bound, 1.055 * c.clamp(min=bound).pow(1 / 2.4) - 0.055, 12.92 * c)


def _cube_root(t: Tensor) -> Tensor:
    bound = _DELTA**3
    return torch.where(t > bound, t.clamp(min=bound).pow(1 / 3), t / (3 * _DELTA**2) + 4 / 29)


def _cube(f: Tensor) -> Tensor:
    return torch.where(f > _DELTA, f * f * f, 3 * _DELTA**2 * (f - 4 / 29))


def _unit(c: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (c + 1) / 2


def _signed(c: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return 2 * c - 1
