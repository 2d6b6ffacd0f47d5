"""What a build makes, with and without a compiler: from a copy of the sources, in a folder of its own."""

from __future__ import annotations

import email
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch

import histloss
from test_native import REPORT

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "csrc",
    "histloss",
    "build_backend.py",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
)
NO_COMPILER = {"HISTLOSS_BUILD": "auto", "CXX": "/nonexistent/c++"}


def copy_sources(tree: Path) -> Path:
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(ROOT / name, tree)
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_sources(tmp_path / "tree")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with a wheel of them in dist/, and ninja's object files in build/native/. Where
    nvcc is, for CUDA too."""
    tree = copy_sources(tmp_path_factory.mktemp("built") / "tree")
    if (ROOT / "build" / "native").is_dir():  # so that ninja compiles no more than it must
        shutil.copytree(ROOT / "build" / "native", tree / "build" / "native")
    build_wheel(tree, HISTLOSS_BUILD="1", HISTLOSS_CUDA=os.environ.get("HISTLOSS_CUDA", "auto"))
    return tree


@pytest.fixture
def library(built: Path, request: pytest.FixtureRequest) -> Path:
    path = built / "build" / "native" / f"{request.param}.abi3.so"
    if request.param == "_cuda" and not path.exists():
        pytest.skip("the CUDA kernels are not built; HISTLOSS_CUDA=1 says why")
    return path


each_library = pytest.mark.parametrize("library", ["_C", "_cuda"], indirect=True)
for_cuda = pytest.mark.parametrize("library", ["_cuda"], indirect=True)


@pytest.fixture
def compiled(tree: Path, built: Path) -> Path:
    """A copy of the sources in which the CPU library needs no compiling."""
    shutil.copytree(built / "build" / "native", tree / "build" / "native")
    return tree


def run(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "HISTLOSS_CUDA": "0", **environment}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def run_pip_wheel(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "dist")
    return run(tree, "-m", "pip", "wheel", *options, ".", **environment)


def build_wheel(tree: Path, **environment: str) -> Path:
    done = run_pip_wheel(tree, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return wheel_of(tree)


def wheel_of(tree: Path) -> Path:
    [wheel] = (tree / "dist").glob("*.whl")
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def dist_info(wheel: Path, name: str) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [path] = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return email.message_from_bytes(archive.read(path))


def report_from(site: Path, before: str = "") -> Any:
    """What a new process says that runs the histloss in this folder; see test_native.py."""
    # The finder of an editable install would lend its library to a package that has none.
    forget = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in f.__module__]"
    done = run(site, "-c", f"{forget}\n{before}\n{REPORT}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- without a compiler ---------------------------------------------------------------------------


def test_without_a_compiler_the_package_is_pure_and_says_so(tree: Path, tmp_path: Path) -> None:
    wheel = build_wheel(tree, **NO_COMPILER)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert dist_info(wheel, "WHEEL")["Root-Is-Purelib"] == "true"

    told = report_from(unpack(wheel, tmp_path / "site"))
    cpu = told["info"]["cpu"]
    assert not cpu["loaded"]
    assert "without a working C++ compiler" in cpu["reason"]
    [(kind, message)] = told["warnings"]  # one, for two histograms
    assert kind == "ReferenceWarning"
    assert cpu["reason"] in message
    expected = histloss.soft_histogram(torch.zeros(1, 1, 4), bins=3)
    torch.testing.assert_close(torch.tensor(told["histograms"]), torch.stack([expected, expected]))


def test_histloss_build_1_without_a_compiler_fails(tree: Path) -> None:
    done = run_pip_wheel(tree, **NO_COMPILER | {"HISTLOSS_BUILD": "1"})
    assert done.returncode != 0
    assert "the C++ compiler /nonexistent/c++ is not found" in done.stdout + done.stderr
    assert not list(tree.glob("dist/*"))


def test_histloss_build_1_fails_where_compiling_does(tree: Path) -> None:
    (tree / "csrc" / "ops.cpp").write_text("#error broken on purpose\n")
    done = run(tree, "setup.py", "build", HISTLOSS_BUILD="1")
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert "compiling failed" in done.stderr


def test_histloss_build_0_is_pure(tree: Path) -> None:
    wheel = build_wheel(tree, HISTLOSS_BUILD="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not (tree / "build" / "native").exists()


def test_histloss_build_must_be_known(tree: Path) -> None:
    done = run(tree, "setup.py", "build", HISTLOSS_BUILD="yes")
    assert done.returncode != 0
    assert "HISTLOSS_BUILD must be auto, 0 or 1, got 'yes'" in done.stderr


def test_a_failed_build_warns_and_leaves_no_older_library_behind(tree: Path) -> None:
    older = tree / "histloss" / "_C.abi3.so"
    older.touch()
    done = run(tree, "setup.py", "build_ext", "--inplace", **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "WITHOUT ITS NATIVE KERNELS" in done.stderr
    assert "/nonexistent/c++ is not found" in done.stderr
    assert not older.exists()


# ---- with one -------------------------------------------------------------------------------------


def test_the_wheel_is_for_every_python_from_3_10(built: Path) -> None:
    wheel = wheel_of(built)
    assert re.search(r"-cp310-abi3-linux_\w+\.whl$", wheel.name)
    assert dist_info(wheel, "WHEEL")["Root-Is-Purelib"] == "false"
    metadata = dist_info(wheel, "METADATA")
    assert metadata["Version"] == histloss.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert [r for r in metadata.get_all("Requires-Dist", []) if "extra" not in r] == ["torch>=2.10"]


def test_the_wheel_holds_the_package_and_no_more(built: Path) -> None:
    with zipfile.ZipFile(wheel_of(built)) as archive:
        inside = {path for path in archive.namelist() if ".dist-info/" not in path}
    python = {path.relative_to(built).as_posix() for path in (built / "histloss").rglob("*.py")}
    libraries = {f"histloss/{path.name}" for path in (built / "build" / "native").glob("*.so")}
    assert "histloss/_C.abi3.so" in libraries
    assert inside == python | libraries | {"histloss/py.typed"}


def test_the_wheel_runs(built: Path, tmp_path: Path) -> None:
    told = report_from(unpack(wheel_of(built), tmp_path / "site"))
    assert told["info"]["cpu"]["path"] == str(tmp_path / "site" / "histloss" / "_C.abi3.so")
    assert told["warnings"] == []


def symbols(library: Path, *options: str) -> dict[str, str]:
    """Names, without versions, and the letters by which nm classes them."""
    done = subprocess.run(["nm", *options, library], capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[-1].partition("@")[0]: row[-2] for row in rows}


@each_library
def test_the_library_needs_only_stable_interfaces(library: Path) -> None:
    needed = symbols(library, "--dynamic", "--undefined-only")
    assert any(name.startswith("aoti_torch_") for name in needed)  # LibTorch's stable C interface
    cpp_of_torch = re.compile(r"N[rVKRO]*(2at|3c10|5torch)\d")
    assert [name for name in needed if cpp_of_torch.search(name)] == []
    limited_api = {"PyModule_AddStringConstant", "PyModule_Create2", "_Py_Dealloc"}
    assert {name for name in needed if re.match("_?Py", name)} == limited_api
    assert [name for name in needed if re.match("cu[A-Z]|cuda[A-Z]", name)] == []  # the runtime is in it


@each_library
def test_the_library_exports_nothing_of_its_own_but_the_module(library: Path) -> None:
    exported = symbols(library, "--dynamic", "--defined-only")
    own = [name for name in exported if re.search("histloss|PyInit|^cu", name)]
    assert own == [f"PyInit_{library.name.partition('.')[0]}"]


def test_kernels_define_nothing_outside_their_instruction_set(built: Path) -> None:
    """Else the linker could keep, of an inline function's copies, one that older processors do not run."""
    objects = sorted((built / "build" / "native" / "csrc" / "cpu" / "kernels").glob("*.o"))
    kernels = sorted((built / "csrc" / "cpu" / "kernels").glob("*.cpp"))
    assert {path.name.partition(".")[0] for path in objects} == {path.stem for path in kernels}
    for path in objects:
        simd = path.suffixes[-2][1:]
        defined = symbols(path, "--extern-only", "--defined-only")
        namespace = f"histloss3cpu{len(simd)}{simd}"
        shared = [name for name in defined if namespace not in name and not name.startswith("DW.ref.")]
        assert shared == [], path.name
        assert any(namespace in name for name in defined), path.name


def stale_after_a_change(built: Path, header: str) -> str:
    """What ninja would make again, were this header another."""

    def to_do() -> str:
        done = run(built, "-m", "ninja", "-f", "build/native/build.ninja", "-n")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "no work to do" in to_do()
    before = (built / header).stat()
    (built / header).touch()
    stale = to_do()
    os.utime(built / header, ns=(before.st_atime_ns, before.st_mtime_ns))
    return stale


def test_a_changed_header_recompiles_what_includes_it(built: Path) -> None:
    stale = stale_after_a_change(built, "csrc/cpu/dispatch.h")
    assert "csrc/ops.o" in stale
    assert "cpu/dispatch.o" in stale
    assert "kernels/" not in stale
    assert "csrc/cuda/" not in stale


# ---- CUDA -----------------------------------------------------------------------------------------


def in_place(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # For all architectures that nvcc knows, though make asks for one.
    defaults = {"HISTLOSS_BUILD": "1", "HISTLOSS_CUDA_ARCHS": ""}
    return run(tree, "setup.py", "build_ext", "--inplace", **defaults | environment)


def make_nvcc(folder: Path, *known: str) -> str:
    """Something that says which architectures it knows, and cannot compile."""
    path = folder / "nvcc"
    answer = "\\n".join(known)
    path.write_text(f'#!/bin/sh\ncase "$*" in *--list-gpu-code) printf "{answer}\\n";; *) exit 1;; esac\n')
    path.chmod(0o755)
    return str(path)


def test_histloss_cuda_1_without_nvcc_fails_before_it_compiles(tree: Path) -> None:
    done = in_place(tree, HISTLOSS_BUILD="auto", HISTLOSS_CUDA="1", NVCC="/nonexistent/nvcc")
    assert done.returncode != 0
    assert "the CUDA compiler /nonexistent/nvcc is not found" in done.stderr
    assert not list(tree.rglob("*.o"))


def test_histloss_cuda_must_be_known(tree: Path) -> None:
    done = in_place(tree, HISTLOSS_CUDA="yes")
    assert done.returncode != 0
    assert "HISTLOSS_CUDA must be auto, 0 or 1, got 'yes'" in done.stderr


@pytest.mark.parametrize(
    ("cuda", "nvcc", "reason"),
    [
        ("0", None, "HISTLOSS_CUDA=0"),
        ("auto", None, "the CUDA compiler /nonexistent/nvcc is not found"),
        ("auto", "sm_90", "compiling failed"),
    ],
)
def test_without_cuda_the_cpu_library_is_built_and_no_older_one_left(
    compiled: Path, tmp_path: Path, cuda: str, nvcc: str | None, reason: str
) -> None:
    older = compiled / "histloss" / "_cuda.abi3.so"
    older.touch()
    nvcc = make_nvcc(tmp_path, nvcc) if nvcc else "/nonexistent/nvcc"
    done = in_place(compiled, HISTLOSS_CUDA=cuda, NVCC=nvcc)
    assert done.returncode == 0, done.stderr
    assert f"histloss is built without its CUDA kernels: {reason}" in done.stderr
    assert not older.exists()
    assert (compiled / "histloss" / "_C.abi3.so").is_file()


def test_histloss_cuda_1_fails_where_compiling_does(compiled: Path, tmp_path: Path) -> None:
    done = in_place(compiled, HISTLOSS_CUDA="1", NVCC=make_nvcc(tmp_path, "sm_90"))
    assert done.returncode != 0
    assert "compiling failed" in done.stderr


@pytest.mark.parametrize(
    ("asked", "codes", "output"),
    [
        ("", "sm_80 sm_90 compute_90", "this nvcc knows no sm_75, sm_86, sm_89, sm_100, sm_120"),
        ("90", "sm_90", ""),
        ("8.0;9.0+PTX", "sm_80 sm_90 compute_90", ""),
        ("80 90a", "sm_80 sm_90a", ""),
        ("120", None, "this nvcc compiles for sm_80, sm_90, sm_90a, not for '120'"),
        ("Hopper", None, "HISTLOSS_CUDA_ARCHS must be such as"),
    ],
)
def test_architectures_are_those_asked_for_or_known(
    compiled: Path, tmp_path: Path, asked: str, codes: str | None, output: str
) -> None:
    nvcc = make_nvcc(tmp_path, "sm_80", "sm_90", "sm_90a")
    done = in_place(compiled, NVCC=nvcc, HISTLOSS_CUDA="auto", HISTLOSS_CUDA_ARCHS=asked)
    assert done.returncode == 0, done.stderr
    assert output in done.stdout + done.stderr
    rules = (compiled / "build" / "native" / "build.ninja").read_text().replace("$\n", "")
    rules = re.sub(" +", " ", rules)
    if codes is None:
        assert "gencode" not in rules
    else:
        assert re.findall(r",code=(\w+)", rules) == codes.split()
        assert f'-DHISTLOSS_ARCHITECTURES="{codes}"' in rules


CUDA_REPORT = """
import json, sys, torch, histloss
torch.ops.load_library(sys.argv[1])
names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("histloss::")]
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
try:
    ops, keys = torch.ops.histloss, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    ops.soft_histogram.default.redispatch(keys, torch.zeros(1, 4), None, 3, -1.0, 1.0, 0.4, 0)
except RuntimeError as error:
    print(json.dumps([[(name, has_kernel(name, "CUDA")) for name in names], str(error)]))
"""


@for_cuda
def test_the_cuda_library_loads_and_has_every_op_without_cuda(library: Path) -> None:
    done = run(ROOT, "-c", CUDA_REPORT, str(library))
    assert done.returncode == 0, done.stderr
    kernels, error = json.loads(done.stdout)
    assert len(kernels) == 12
    of_the_cpu_alone = {name for name, has_kernel in kernels if not has_kernel}
    assert of_the_cpu_alone == {"histloss::color_cross_entropy", "histloss::nearest_bins"}
    assert "x is not a CUDA tensor" in error


@for_cuda
def test_backend_info_describes_the_cuda_library_or_says_why_not(
    built: Path, library: Path, tmp_path: Path
) -> None:
    pretend = "import torch; torch.version.cuda = '13.0'"
    site = unpack(wheel_of(built), tmp_path / "site")
    path = site / "histloss" / library.name

    def info(before: str = pretend) -> Any:
        told = report_from(site, before)
        assert told["warnings"] == []
        assert told["info"]["cpu"]["loaded"]
        return told["info"]["cuda"]

    loaded = info()
    version = re.fullmatch(r"nvcc (\d+\.\d+)\.\d+", loaded["compiler"])
    assert version is not None
    assert loaded["loaded"]
    assert loaded["path"] == str(path)
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", name) for name in loaded["architectures"])
    assert loaded["runtime"] == version[1]
    assert loaded["reason"] is None

    def reason(before: str = pretend) -> str:
        told = info(before)
        assert {told[key] for key in ("path", "compiler", "runtime", "architectures")} == {None}
        assert not told["loaded"]
        return str(told["reason"])

    assert reason("import torch; torch.version.cuda = None").endswith("is built without CUDA")
    path.write_bytes(b"not a library")
    assert "ImportError" in reason()
    path.unlink()
    assert "HISTLOSS_CUDA=1 pip install" in reason()


@for_cuda
def test_a_changed_cuda_header_recompiles_what_includes_it(built: Path, library: Path) -> None:
    stale = stale_after_a_change(built, "csrc/cuda/device.cuh")
    assert "cuda/joint_histogram.o" in stale
    assert "cuda/ops.o" not in stale
    assert "csrc/cpu/" not in stale


def spills(log: str) -> list[str]:
    """The kernels that spill registers, by what ptxas -v says; a template argument double is an excuse."""
    functions = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
        log,
        re.DOTALL,
    )
    assert len(functions) == log.count("Compiling entry function")
    names = "\n".join(name for name, *_ in functions)
    done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    return [
        f"{name} on {architecture}"
        for name, (_, architecture, *spilled) in zip(done.stdout.splitlines(), functions, strict=True)
        if spilled != ["0", "0"] and not re.search(r"<.*\bdouble\b.*>", name)
    ]


def test_spills_of_float32_kernels_are_found() -> None:
    def entry(name: str, stores: int) -> str:
        return (
            f"ptxas info    : Compiling entry function '{name}' for 'sm_90'\n"
            f"ptxas info    : Function properties for {name}\n"
            f"    0 bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads\n"
            "ptxas info    : Used 18 registers, used 0 barriers\n"
        )

    log = entry("_Z1aIfEvd", 8) + entry("_Z1bIdEvf", 8) + entry("_Z1cIfEvf", 0) + entry("_Z1dd", 4)
    assert spills(log) == ["void a<float>(double) on sm_90", "d(double) on sm_90"]


@for_cuda
def test_no_float32_kernel_spills_registers(built: Path, library: Path) -> None:
    logs = sorted((built / "build" / "native" / "csrc" / "cuda").glob("*.log"))
    sources = {path.stem for path in (built / "csrc" / "cuda").glob("*.cu")}
    assert sources <= {path.name.partition(".")[0] for path in logs}
    log = "".join(path.read_text() for path in logs)
    assert "Compiling entry function" in log
    assert spills(log) == []


FAKE_CUDA = """
#include <cstdio>
#include <cstdlib>
#include "launch_error.h"

extern "C" const char* cudaGetErrorString(cudaError_t) { return "what CUDA said"; }
extern "C" cudaError_t cudaDriverGetVersion(int* version) {
  *version = std::atoi(std::getenv("DRIVER"));
  return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 6 : 1;
  return std::getenv("NO_GPU") ? cudaErrorInsufficientDriver : cudaSuccess;
}
int main(int, char** arguments) {
  const auto error = static_cast<cudaError_t>(std::atoi(arguments[1]));
  std::puts(histloss::cuda::launch_error("an_op", error, 1).c_str());
}
"""


@for_cuda
def test_a_failed_launch_says_what_does_not_fit(built: Path, library: Path, tmp_path: Path) -> None:
    """With a CUDA runtime made up for the purpose: no GPU that lacks something is at hand."""
    (tmp_path / "fake.cpp").write_text(FAKE_CUDA)
    rules = (built / "build" / "native" / "build.ninja").read_text()
    [nvcc] = re.findall(r"rule compile_cuda\n  command = (\S+)", rules)
    program = tmp_path / "program"
    sources = [tmp_path / "fake.cpp", built / "csrc" / "cuda" / "launch_error.cpp"]
    options = ["-std=c++20", "-I", built / "csrc" / "cuda", "-cudart=none", "-o", program]
    define = '-DHISTLOSS_ARCHITECTURES="sm_80 sm_90 compute_90"'
    subprocess.run([nvcc, *options, define, *sources], check=True)

    def text(error: int, **environment: str) -> str:
        environment = {**os.environ, **environment}
        return subprocess.run(
            [program, str(error)], env=environment, capture_output=True, text=True, check=True
        ).stdout

    out_of_memory, insufficient_driver, no_kernel_image = 2, 35, 209
    said = "histloss: an_op failed on cuda:1: what CUDA said"
    assert text(out_of_memory) == f"{said}\n"
    unfit = text(no_kernel_image, DRIVER="12040")
    assert unfit.startswith(
        f"{said}. Found: the GPU has compute capability 6.1, the driver is for CUDA 12.4."
    )
    assert "Needed: one of sm_80 sm_90 compute_90" in unfit
    assert "HISTLOSS_CUDA=1 HISTLOSS_CUDA_ARCHS=6.1 pip install" in unfit
    unfit = text(insufficient_driver, DRIVER="0", NO_GPU="1")
    assert unfit.startswith(f"{said}. Found: the driver is missing. Needed: ")
    assert "HISTLOSS_CUDA=1 pip install" in unfit


# ---- the build backend ----------------------------------------------------------------------------


def test_the_source_distribution_can_be_built_from(tree: Path) -> None:
    done = run(tree, "-c", "import build_backend; build_backend.build_sdist('dist')")
    assert done.returncode == 0, done.stderr
    [path] = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    files = (
        path for path in tree.rglob("*") if path.is_file() and path.relative_to(tree).parts[0] in SOURCES
    )
    assert {path.relative_to(tree).as_posix() for path in files} <= inside


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The build backend, where setuptools itself asks for nothing."""
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("build_backend")
    monkeypatch.setattr(module.build_meta, "get_requires_for_build_wheel", lambda settings: [])
    monkeypatch.delenv("HISTLOSS_BUILD", raising=False)
    monkeypatch.delenv("HISTLOSS_TORCH_DIR", raising=False)
    return module


def test_the_torch_that_is_there_is_compiled_against(backend: Any) -> None:
    assert backend.find_torch() == Path(torch.__file__).parent
    assert backend.get_requires_for_build_wheel() == []


@pytest.mark.parametrize(("minor", "new_enough"), [(9, False), (10, True)])
def test_torch_is_asked_for_where_there_is_none_new_enough(
    backend: Any, minor: int, new_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "torch" / "include" / "torch" / "headeronly" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)  # an isolated build
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(tmp_path))
    assert backend.find_torch() == (tmp_path / "torch" if new_enough else None)
    assert backend.get_requires_for_build_wheel() == ([] if new_enough else ["torch>=2.10"])
    monkeypatch.setenv("HISTLOSS_BUILD", "0")
    assert backend.get_requires_for_build_wheel() == []
