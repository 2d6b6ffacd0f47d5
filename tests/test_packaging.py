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
    """A copy of the sources with a wheel of them in dist/, and ninja's object files in build/native/."""
    tree = copy_sources(tmp_path_factory.mktemp("built") / "tree")
    if (ROOT / "build" / "native").is_dir():  # so that ninja compiles no more than it must
        shutil.copytree(ROOT / "build" / "native", tree / "build" / "native")
    build_wheel(tree, HISTLOSS_BUILD="1")
    return tree


def run(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True
    )


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


def report_from(site: Path) -> Any:
    """What a new process says that runs the histloss in this folder; see test_native.py."""
    # The finder of an editable install would lend its library to a package that has none.
    forget = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in f.__module__]"
    done = run(site, "-c", forget + REPORT)
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
    assert inside == python | {"histloss/_C.abi3.so", "histloss/py.typed"}


def test_the_wheel_runs(built: Path, tmp_path: Path) -> None:
    told = report_from(unpack(wheel_of(built), tmp_path / "site"))
    assert told["info"]["cpu"]["path"] == str(tmp_path / "site" / "histloss" / "_C.abi3.so")
    assert told["warnings"] == []


def symbols(library: Path, *options: str) -> dict[str, str]:
    """Names, without versions, and the letters by which nm classes them."""
    done = subprocess.run(["nm", *options, library], capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[-1].partition("@")[0]: row[-2] for row in rows}


def test_the_library_needs_only_stable_interfaces(built: Path) -> None:
    needed = symbols(built / "build" / "native" / "_C.abi3.so", "--dynamic", "--undefined-only")
    assert any(name.startswith("aoti_torch_") for name in needed)  # LibTorch's stable C interface
    cpp_of_torch = re.compile(r"N[rVKRO]*(2at|3c10|5torch)\d")
    assert [name for name in needed if cpp_of_torch.search(name)] == []
    limited_api = {"PyModule_AddStringConstant", "PyModule_Create2", "_Py_Dealloc"}
    assert {name for name in needed if re.match("_?Py", name)} == limited_api


def test_the_library_exports_nothing_of_its_own_but_the_module(built: Path) -> None:
    exported = symbols(built / "build" / "native" / "_C.abi3.so", "--dynamic", "--defined-only")
    assert [name for name in exported if "histloss" in name or "_C" in name] == ["PyInit__C"]


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


def test_a_changed_header_recompiles_what_includes_it(built: Path) -> None:
    def to_do() -> str:
        done = run(built, "-m", "ninja", "-f", "build/native/build.ninja", "-n")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "no work to do" in to_do()
    header = built / "csrc" / "cpu" / "dispatch.h"
    before = header.stat()
    header.touch()
    stale = to_do()
    os.utime(header, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "csrc/ops.o" in stale
    assert "cpu/dispatch.o" in stale
    assert "kernels/" not in stale


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
