"""Builds histloss/_C.abi3.so: one binary for Python >= 3.10 and PyTorch >= 2.10 (LibTorch's stable ABI).

Environment:
    HISTLOSS_BUILD      auto (default: where it cannot be built, warn and install pure Python), 1 (fail
                        there), 0 (pure Python)
    HISTLOSS_TORCH_DIR  the torch folder to compile against; by default the installed one
    HISTLOSS_SANITIZE   1: AddressSanitizer and UBSan, debug information, a build folder of its own
    CXX, CXXFLAGS, LDFLAGS
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

from build_backend import OLDEST_TORCH, find_torch

MODE = os.environ.get("HISTLOSS_BUILD", "auto")
SANITIZE = os.environ.get("HISTLOSS_SANITIZE", "0") == "1"
BUILD = Path("build", "sanitize" if SANITIZE else "native")
X86 = platform.machine() in ("x86_64", "AMD64")

CXX = shlex.split(os.environ.get("CXX", "c++"))
DEFINES = [
    "-DPy_LIMITED_API=0x030A0000",
    "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000ULL".format(*OLDEST_TORCH),
    f"-DHISTLOSS_X86={int(X86)}",
]
if SANITIZE:
    SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
    OPTIMISE, LINK = ["-O2", "-g", "-fno-omit-frame-pointer", *SANITIZERS], SANITIZERS
else:
    OPTIMISE, LINK = ["-O3", "-g0"], ["-Wl,-s"]

# Each kernel is compiled once for every instruction set; which one runs is decided at run time.
SIMD: dict[str, list[str]] = {"generic": []}
if X86:
    SIMD = {
        "sse": [],
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }


class BuildError(RuntimeError):
    """Why there will be no native library."""


class NinjaBuild(build_ext):
    """Compiles with ninja, and copies each library to where setuptools wants it."""

    def run(self) -> None:
        inplace = self.inplace
        try:
            super().run()
        except (BuildError, ImportError, OSError) as error:
            if MODE == "1":
                raise
            self.warn(f"HISTLOSS IS INSTALLED WITHOUT ITS NATIVE KERNELS AND WILL BE SLOW: {error}")
            self.inplace = inplace
            for extension in self.extensions:  # an older build's library must not be taken for this one's
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []

    def build_extension(self, extension: Extension) -> None:
        library = BUILD / Path(self.get_ext_filename(extension.name)).name
        ninja_file = write_ninja_file(library)
        if subprocess.run([sys.executable, "-m", "ninja", "-f", ninja_file, library]).returncode != 0:
            raise BuildError("compiling failed, with the messages above")
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a process may have the old file mapped
        shutil.copy(library, target)


class Wheel(bdist_wheel):
    """Compiles first, so that a wheel that turns out pure is tagged as such."""

    def run(self) -> None:
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


def write_ninja_file(library: Path) -> Path:
    """The rules, an edge for every object file, and one for the library."""
    torch = check_tools()
    from ninja import ninja_syntax  # a build requirement, which HISTLOSS_BUILD=0 does not need

    headers = [f"-isystem{folder}" for folder in (torch / "include", sysconfig.get_path("include"))]
    compile_flags = [
        *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"),
        *(OPTIMISE + DEFINES + headers + shlex.split(os.environ.get("CXXFLAGS", ""))),
    ]
    link_flags = ["-shared", *LINK, "-Wl,-z,defs", *shlex.split(os.environ.get("LDFLAGS", ""))]
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]

    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.variable("builddir", str(BUILD))
        ninja.rule(
            "compile",
            f"{shell(CXX + compile_flags)} $flags -MMD -MF $out.d -c $in -o $out",
            description="$out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", f"{shell(CXX + link_flags)} -o $out $in {shell(libraries)}", description="$out")
        objects = []
        for source, variant, flags in cpu_sources():
            objects += ninja.build(
                str(BUILD / source.with_suffix(f"{variant}.o")),
                "compile",
                str(source),
                variables={"flags": shell(flags)},
            )
        ninja.build(str(library), "link", objects)
    return BUILD / "build.ninja"


def check_tools() -> Path:
    """The torch folder to compile against."""
    if MODE == "0":
        raise BuildError("HISTLOSS_BUILD=0")
    if sys.platform != "linux":
        raise BuildError(f"the kernels are built on Linux only, not yet on {sys.platform}")
    if shutil.which(CXX[0]) is None:
        raise BuildError(f"the C++ compiler {CXX[0]} is not found; CXX in the environment names another")
    torch = find_torch()
    if torch is None:
        raise BuildError("no PyTorch >= {}.{} to compile against".format(*OLDEST_TORCH))
    return torch


def cpu_sources() -> Iterator[tuple[Path, str, list[str]]]:
    """(source, variant of its object file, flags of its own)"""
    yield Path("csrc/ops.cpp"), "", []
    for source in (Path("csrc/cell_basis.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))):
        yield source, "", []
    for source in sorted(Path("csrc/cpu/kernels").glob("*.cpp")):
        for simd, flags in SIMD.items():
            yield source, f".{simd}", [f"-DHISTLOSS_SIMD={simd}", "-Wno-psabi", *flags]


def shell(arguments: list[str]) -> str:
    return shlex.join(arguments).replace("$", "$$")


if MODE not in ("auto", "0", "1"):
    raise SystemExit(f"HISTLOSS_BUILD must be auto, 0 or 1, got {MODE!r}")
setup(
    ext_modules=[Extension("histloss._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild, "bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
