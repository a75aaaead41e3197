"""Writes tests/export/tensorrt_api.json: the signatures of TensorRT's Python API that export/ relies on, by version.

    python scripts/tensorrt_api.py --python .venv/bin/python

The builder's libraries are not on PyPI, but the bindings are, and they say their own signatures. They only need
libraries of the right names to be imported: empty ones do (nothing is called). Needs gcc, and an interpreter that the
wheels are made for. Run it again for a new version, and look at what changes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = (
    ("tensorrt-cu12-bindings", "10.12.0.36"),
    ("tensorrt-cu12-bindings", "10.16.1.11"),
    ("tensorrt-cu13-bindings", "11.1.0.106"),
    ("tensorrt-cu13-bindings", "11.4.0.106"),
)
TARGET = Path(__file__).resolve().parent.parent / "tests" / "export" / "tensorrt_api.json"
CALLS = """
Builder.__init__ Builder.create_network Builder.create_builder_config Builder.create_optimization_profile
Builder.build_serialized_network
IBuilderConfig.builder_optimization_level IBuilderConfig.hardware_compatibility_level IBuilderConfig.progress_monitor
IBuilderConfig.set_memory_pool_limit IBuilderConfig.set_flag IBuilderConfig.add_optimization_profile
IBuilderConfig.create_timing_cache IBuilderConfig.set_timing_cache IBuilderConfig.get_timing_cache
ITimingCache.serialize IOptimizationProfile.set_shape
OnnxParser.__init__ OnnxParser.parse_from_file OnnxParser.num_errors OnnxParser.get_error
ParserError.desc ParserError.node_name ParserError.node_operator
Runtime.__init__ Runtime.engine_host_code_allowed Runtime.deserialize_cuda_engine
ICudaEngine.create_execution_context ICudaEngine.num_io_tensors ICudaEngine.get_tensor_name
ICudaEngine.get_tensor_mode ICudaEngine.get_tensor_dtype ICudaEngine.get_tensor_shape
IExecutionContext.set_input_shape IExecutionContext.get_tensor_shape IExecutionContext.set_tensor_address
IExecutionContext.execute_async_v3
ILogger.__init__ ILogger.log
IProgressMonitor.__init__ IProgressMonitor.phase_start IProgressMonitor.phase_finish IProgressMonitor.step_complete
nptype
""".split()  # noqa: SIM905
ENUMS = """
NetworkDefinitionCreationFlag BuilderFlag MemoryPoolType HardwareCompatibilityLevel TensorIOMode ILogger.Severity
DataType
""".split()  # noqa: SIM905
# Every function that the bindings import from TensorRT's libraries.
EMPTY_LIBRARY = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getBuilderPluginRegistry",
        "getNvOnnxParserVersion",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)


def main() -> None:
    """Fetch, import and write; or, where asked by ourselves, describe the bindings that can be imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that the wheels are made for")
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.describe:
        print(json.dumps(describe()))
        return
    versions = {version: fetch(package, version, options.python) for package, version in WHEELS}
    note = (
        f"From the bindings' own docstrings, by {Path(__file__).name}. Parameters of each overload; null: a property."
    )
    TARGET.write_text(json.dumps({"about": note, **versions}, indent=1) + "\n")


def fetch(package: str, version: str, python: str) -> dict[str, object]:
    """Return what one version's bindings say of themselves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), f"{package}=={version}"]
        subprocess.run(command, check=True)
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
        major = version.split(".", maxsplit=1)[0]
        (folder / "empty.c").write_text(EMPTY_LIBRARY)
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            target = folder / f"lib{library}.so.{major}"
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", target, folder / "empty.c"], check=True)  # noqa: S607
        environment = {**os.environ, "LD_LIBRARY_PATH": name, "PYTHONPATH": name}
        described = subprocess.run(
            [python, __file__, "--describe"], env=environment, check=True, capture_output=True, text=True
        )
        document: dict[str, object] = json.loads(described.stdout)
        return document


def describe() -> dict[str, object]:
    """Describe the module `tensorrt_bindings`."""
    import tensorrt_bindings as trt

    return {
        "calls": {name: parameters(find(trt, name)) for name in CALLS},
        "enums": {name: {key: int(value) for key, value in find(trt, name).__members__.items()} for name in ENUMS},
    }


def find(module: object, name: str) -> object:
    """Return what a dotted name stands for."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def parameters(function: object) -> list[list[str]] | None:
    """Return the parameters' names of each overload, `self` left out; None for a property."""
    if isinstance(function, property):
        return None
    documentation = function.__doc__ or ""
    own_name = getattr(function, "__name__", "")
    signatures = re.findall(rf"^(?:\d+\. )?{own_name}\((.*)\) -> ", documentation, flags=re.MULTILINE)
    if not signatures:  # written in Python
        code = function.__code__  # type: ignore[attr-defined]
        return [list(code.co_varnames[: code.co_argcount])]
    names = [re.findall(r"(?:^|, )(\w+): ", signature) for signature in signatures if not signature.startswith("*args")]
    return [[name for name in overload if name != "self"] for overload in names]


if __name__ == "__main__":
    main()
