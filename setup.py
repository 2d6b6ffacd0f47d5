"""Builds histloss/_C.abi3.so, the ops and their CPU kernels, and histloss/_cuda.abi3.so, the CUDA kernels:
binaries for Python >= 3.10 and PyTorch >= 2.10 (LibTorch's stable ABI), with or without CUDA.

Environment:
    HISTLOSS_BUILD      auto (default: where it cannot be built, warn and install pure Python), 1 (fail
                        there), 0 (pure Python)
    HISTLOSS_CUDA       auto (default: where the CUDA library cannot be built, warn and go on without), 1
                        (fail there), 0 (go on without)
    HISTLOSS_CUDA_ARCHS GPU architectures, such as "90" or "75;80;90+PTX"; by default all from 7.5 that nvcc
                        knows of those that PyTorch is built for, and PTX for newer ones. No GPU is needed.
    HISTLOSS_TORCH_DIR  the torch folder to compile against; by default the installed one
    HISTLOSS_SANITIZE   1: AddressSanitizer and UBSan, debug information, a build folder of its own
    CXX, CXXFLAGS, LDFLAGS
    NVCC, CUDA_HOME     nvcc, or the toolkit's folder; else it is looked for on PATH and in /usr/local/cuda
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

from build_backend import OLDEST_TORCH, find_torch

MODE = os.environ.get("HISTLOSS_BUILD", "auto")
CUDA = os.environ.get("HISTLOSS_CUDA", "auto")
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

ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]


class BuildError(RuntimeError):
    """Why there will be no native library, or none for CUDA."""


class NinjaBuild(build_ext):
    """Compiles with ninja, and copies each library to where setuptools wants it."""

    def run(self) -> None:
        inplace, wanted = self.inplace, self.extensions
        try:
            super().run()
        except (BuildError, ImportError, OSError) as error:
            if "1" in (MODE, CUDA):
                raise
            self.warn(f"HISTLOSS IS INSTALLED WITHOUT ITS NATIVE KERNELS AND WILL BE SLOW: {error}")
            self.inplace, self.extensions = inplace, []
        for extension in wanted:
            if extension not in self.extensions:  # an older build's library must not be taken for this one's
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.distribution.ext_modules = self.extensions

    def build_extensions(self) -> None:
        cpu, cuda = self.extensions
        torch, nvcc = check_tools(), None
        try:
            nvcc = find_nvcc()
        except BuildError as error:
            self.go_on_without_cuda(error)
        write_ninja_file(torch, nvcc)
        self.build_extension(cpu)
        if nvcc is not None:
            try:
                self.build_extension(cuda)
            except BuildError as error:
                self.go_on_without_cuda(error)

    def go_on_without_cuda(self, error: BuildError) -> None:
        if CUDA == "1":
            raise error
        self.warn(f"histloss is built without its CUDA kernels: {error}")
        self.extensions = self.extensions[:1]

    def build_extension(self, extension: Extension) -> None:
        library = library_of(extension.name)
        command = [sys.executable, "-m", "ninja", "-f", BUILD / "build.ninja", library]
        if subprocess.run(command).returncode != 0:
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


@dataclass
class Nvcc:
    command: list[str]
    flags: list[str]


def write_ninja_file(torch: Path, nvcc: Nvcc | None) -> None:
    """The rules, an edge for every object file, and one for each library."""
    from ninja import ninja_syntax  # a build requirement, which HISTLOSS_BUILD=0 does not need

    headers = ["-isystem", str(torch / "include"), "-isystem", sysconfig.get_path("include")]
    user_flags, user_link_flags = (shlex.split(os.environ.get(name, "")) for name in ("CXXFLAGS", "LDFLAGS"))
    host_flags = ["-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
    link_flags = ["-shared", *LINK, "-Wl,-z,defs", *user_link_flags]
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]

    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.variable("builddir", str(BUILD))

        def add_objects(rule: str, sources: Iterable[tuple[Path, str, list[str]]]) -> list[str]:
            objects = []
            for source, variant, flags in sources:
                objects += ninja.build(
                    str(BUILD / source.with_suffix(f"{variant}.o")),
                    rule,
                    str(source),
                    variables={"flags": shell(flags)},
                )
            return objects

        compile_flags = ["-std=c++20", *host_flags, *OPTIMISE, *DEFINES, *headers, *user_flags]
        ninja.rule(
            "compile",
            f"{shell(CXX + compile_flags)} $flags -MMD -MF $out.d -c $in -o $out",
            description="$out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", f"{shell(CXX + link_flags)} -o $out $in {shell(libraries)}", description="$out")
        ninja.build(str(library_of("histloss._C")), "link", add_objects("compile", cpu_sources()))
        if nvcc is None:
            return

        compile_flags = [
            *("-std=c++20", "-O3", "-ftz=true", *nvcc.flags, "-Xptxas=-v", *DEFINES, *headers),
            *for_host(host_flags + user_flags),
        ]
        # What ptxas tells of registers and spills is for the file beside the object, warnings are for all.
        ninja.rule(
            "compile_cuda",
            f"{shell(nvcc.command + compile_flags)} $flags -MMD -MF $out.d -c $in -o $out >$out.log 2>&1; "
            "code=$$?; sed '/^ptxas info/d; /bytes stack frame/d' $out.log; exit $$code",
            description="$out",
            depfile="$out.d",
            deps="gcc",
        )
        # Nothing here needs libtorch itself, but it brings libtorch_cuda where PyTorch has CUDA.
        link_flags = [*for_host([*link_flags, "-Wl,--no-as-needed"]), "-cudart=static"]
        libraries.append("-ltorch")
        ninja.rule(
            "link_cuda",
            f"{shell(nvcc.command + link_flags)} -o $out $in {shell(libraries)}",
            description="$out",
        )
        objects = [*add_objects("compile_cuda", cuda_sources()), str(BUILD / "csrc" / "cell_basis.o")]
        ninja.build(str(library_of("histloss._cuda")), "link_cuda", objects)


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


def find_nvcc() -> Nvcc:
    if CUDA == "0":
        raise BuildError("HISTLOSS_CUDA=0")
    folders = [*filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH"))), "/usr/local/cuda"]
    if "NVCC" in os.environ:
        command = shlex.split(os.environ["NVCC"])
    else:
        candidates = [f"{folder}/bin/nvcc" for folder in folders]
        candidates.insert(-1, "nvcc")
        command = [next(filter(shutil.which, candidates), "nvcc")]
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"the CUDA compiler {command[0]} is not found; NVCC or CUDA_HOME in the environment tells where"
        )
    asked = subprocess.run([*command, "--list-gpu-code"], capture_output=True, text=True)
    if asked.returncode != 0:
        raise BuildError(f"{shlex.join(command)} --list-gpu-code fails: {asked.stderr.strip()}")
    return Nvcc([*command, f"-ccbin={CXX[-1]}"], architecture_flags(asked.stdout.split()))


def architecture_flags(known: list[str]) -> list[str]:
    """Machine code for each architecture, and PTX where it is asked for."""
    asked = re.split("[;, ]+", os.environ.get("HISTLOSS_CUDA_ARCHS", "").strip("; ,"))
    if asked == [""]:
        asked = [architecture for architecture in ARCHITECTURES if f"sm_{architecture}" in known]
        if dropped := sorted(set(ARCHITECTURES).difference(asked), key=int):
            print(f"histloss: this nvcc knows no {', '.join(map('sm_{}'.format, dropped))}")
        asked[-1:] = [f"{architecture}+PTX" for architecture in asked[-1:]]
    flags, names = [], []
    for text in asked:
        match = re.fullmatch(r"(\d+)\.?(\d[af]?)(\+PTX)?", text)
        if match is None:
            raise BuildError(f'HISTLOSS_CUDA_ARCHS must be such as "90" or "75;80;90+PTX", got {text!r}')
        number = match[1] + match[2]
        if f"sm_{number}" not in known:
            raise BuildError(f"this nvcc compiles for {', '.join(known)}, not for {text!r}")
        for code in ("sm", "compute") if match[3] else ("sm",):
            flags.append(f"-gencode=arch=compute_{number},code={code}_{number}")
            names.append(f"{code}_{number}")
    return [*flags, f'-DHISTLOSS_ARCHITECTURES="{" ".join(names)}"']


def cpu_sources() -> Iterator[tuple[Path, str, list[str]]]:
    """(source, variant of its object file, flags of its own)"""
    yield Path("csrc/ops.cpp"), "", []
    for source in (Path("csrc/cell_basis.cpp"), *sorted(Path("csrc/cpu").glob("*.cpp"))):
        yield source, "", []
    for source in sorted(Path("csrc/cpu/kernels").glob("*.cpp")):
        for simd, flags in SIMD.items():
            yield source, f".{simd}", [f"-DHISTLOSS_SIMD={simd}", "-Wno-psabi", *flags]


def cuda_sources() -> Iterator[tuple[Path, str, list[str]]]:
    """The same, of what nvcc compiles."""
    for source in sorted(Path("csrc/cuda").glob("*.c*")):
        if source.suffix in (".cu", ".cpp"):
            yield source, "", []


def library_of(extension: str) -> Path:
    return BUILD / f"{extension.rpartition('.')[2]}.abi3.so"


def for_host(flags: list[str]) -> list[str]:
    """Flags for the C++ compiler behind nvcc, which takes a comma for the end of one."""
    return [f"-Xcompiler={flag}".replace(",", r"\,") for flag in flags]


def shell(arguments: list[str]) -> str:
    return shlex.join(arguments).replace("$", "$$")


if MODE not in ("auto", "0", "1"):
    raise SystemExit(f"HISTLOSS_BUILD must be auto, 0 or 1, got {MODE!r}")
if CUDA not in ("auto", "0", "1"):
    raise SystemExit(f"HISTLOSS_CUDA must be auto, 0 or 1, got {CUDA!r}")
setup(
    ext_modules=[
        Extension(name, sources=[], py_limited_api=True) for name in ("histloss._C", "histloss._cuda")
    ],
    cmdclass={"build_ext": NinjaBuild, "bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
