"""Compiles the kernels, and those with seeded faults, for the CPU into build/emulation/<variant>/.

    python tests/emulation/build.py [plain] [asan] [tsan]

Environment: CXX, CXXFLAGS.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from ninja import ninja_syntax

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent.relative_to(ROOT)
BUILD = Path("build", "emulation")

UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
FLAGS = {
    "plain": ["-O2", "-g1"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address", *UNDEFINED],
    "tsan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}
# The emulator tells the sanitizers of its fibers. Its own data, shared by them, ThreadSanitizer must not see.
EMULATOR = [HERE / "emulator.cpp", HERE / "fibers.cpp"]
EMULATOR_FLAGS = {
    "plain": ["-O2"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address"],
    "tsan": ["-O1", "-g", "-DHISTLOSS_TSAN"],
}
KERNELS = {
    "emulated_kernels": sorted(path.relative_to(ROOT) for path in ROOT.glob("csrc/cuda/*.cu")),
    "emulated_faults": [HERE / "faults.cu"],
}
HOST_CODE = {
    "emulated_kernels": [HERE / "module.cpp", Path("csrc/cell_basis.cpp")],
    "emulated_faults": [HERE / "faults_module.cpp"],
}


def write_ninja_file() -> Path:
    """Everything of every variant, each a target of its own."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = [
        *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
        *("-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"),  # unroll; too often wrong
        # Images of the tests' sizes have several segments and parts, and threads several items.
        *("-DHISTLOSS_SEGMENT=512", "-DHISTLOSS_LEAST_PART=512", "-DHISTLOSS_MOST_BLOCKS=20"),
        *(f"-I{HERE / 'include'}", f"-I{HERE}"),
        *(f"-isystem{folder}" for folder in (pybind11.get_include(), sysconfig.get_path("include"))),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]
    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    with (ROOT / BUILD / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.variable("builddir", str(BUILD))
        ninja.rule(
            "compile",
            f"{shlex.join(compiler + flags)} $flags -MMD -MF $out.d -c -x c++ $in -o $out",
            description="$out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", f"{shlex.join(compiler)} -shared $flags -o $out $in", description="$out")

        def compile_all(sources: list[Path], variant: str, flags: list[str]) -> list[str]:
            targets = [str(BUILD / variant / source.with_suffix(".o").name) for source in sources]
            for source, target in zip(sources, targets, strict=True):
                ninja.build(target, "compile", str(source), variables={"flags": shlex.join(flags)})
            return targets

        host = {module: compile_all(sources, "host", ["-O1"]) for module, sources in HOST_CODE.items()}
        for variant, flags in FLAGS.items():
            emulator = compile_all(EMULATOR, variant, EMULATOR_FLAGS[variant])
            libraries = []
            for module, sources in KERNELS.items():
                objects = compile_all(sources, variant, flags) + host[module] + emulator
                library = str(BUILD / variant / f"{module}.so")
                libraries += ninja.build(library, "link", objects, variables={"flags": shlex.join(flags)})
            ninja.build(variant, "phony", libraries)
    return BUILD / "build.ninja"


if __name__ == "__main__":
    variants = sys.argv[1:] or list(FLAGS)
    command = [sys.executable, "-m", "ninja", "-f", write_ninja_file(), *variants]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
