"""A stand-in for the module `tensorrt`, for machines without a GPU: the API that export/ uses, and nothing more.

It is true to the real one where that matters here: names and parameters (a test compares them with tensorrt_api.json),
base classes that must be initialised, errors that go to the logger and come back as None, False or -1, a builder that
calls the monitor from another thread, timing caches that belong to a device, plans that belong to a version, uint8
inputs that must be cast first, profiles that limit N. A "plan" is the ONNX graph itself, computed by ONNX Runtime in
the buffers that it is given. Not true to it: speed, numbers, and every rule that is not in this list.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
import onnxruntime

MAGIC = b"FAKE PLAN\n"
_CREATION_FLAGS = {
    "10": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "11": {"STRONGLY_TYPED": 0},
}


@dataclass
class Behaviour:
    """What shall happen; and what has happened."""

    build_errors: list[str] = field(default_factory=list)
    build_warnings: list[str] = field(default_factory=list)
    unsupported_operators: set[str] = field(default_factory=set)
    noise: float = 0.0
    """Share of wrong in every answer."""
    gpu: str = "Fake GPU"
    no_driver: bool = False
    no_memory: bool = False
    settings: list[dict[str, Any]] = field(default_factory=list)
    """Of each build."""
    calls: list[int] = field(default_factory=list)
    """N of each call."""


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class DataType(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8 = range(6)


class BuilderFlag(enum.IntEnum):
    TF32, VERSION_COMPATIBLE = 7, 14


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = range(3)


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


_DTYPES = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.float16),
    onnx.TensorProto.UINT8: (DataType.UINT8, np.uint8),
}


class _Initialised:
    """pybind11 refuses a subclass whose `__init__` does not call this one."""

    _ready = False

    def __init__(self) -> None:
        self._ready = True


class ILogger(_Initialised):
    Severity = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor(_Initialised):
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    """Has the buffer protocol."""


class ITimingCache:
    def __init__(self, stored: bytes) -> None:
        self.stored = stored

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.stored)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple] = {}

    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:  # noqa: A002
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags, self.model = flags, None


class IBuilderConfig:
    # As in the bindings, a misspelt setting is an AttributeError.
    __slots__ = (
        "_builder",
        "_cache",
        "_flags",
        "_pools",
        "_profiles",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "progress_monitor",
    )

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None
        self._flags: set[str] = set()
        self._pools: dict[str, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool.name] = pool_size

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag.name)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        for smallest, tuned, largest in profile._shapes.values():
            if not all(a <= b <= c for a, b, c in zip(smallest, tuned, largest, strict=True)):
                return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return ITimingCache(bytes(serialized_timing_cache) or self._header())

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not cache.stored.startswith(self._header()) and not ignore_mismatch:
            self._builder.logger.log(Severity.ERROR, "timing cache header does not match the device")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def _header(self) -> bytes:
        return f"TIMING {self._builder.trt.__version__} {self._builder.trt.behaviour.gpu}\n".encode()


class Builder:
    trt: Any

    def __init__(self, logger: ILogger) -> None:
        if not logger._ready:
            raise TypeError("__init__() must be called when overriding __init__")
        if self.trt.behaviour.no_driver:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        behaviour = self.trt.behaviour
        behaviour.settings.append(
            {
                "strongly_typed": bool(network.flags >> self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1),
                "profiles": [profile._shapes for profile in config._profiles],
                "flags": config._flags,
                "pools": config._pools,
                "level": config.builder_optimization_level,
                "hardware": config.hardware_compatibility_level.name,
                "timing_cache": config.get_timing_cache().stored if config.get_timing_cache() else None,
            }
        )
        for message in behaviour.build_warnings:
            self.logger.log(Severity.WARNING, message)
        for message in behaviour.build_errors:
            self.logger.log(Severity.ERROR, message)
        if behaviour.build_errors or not self._monitored(config) or network.model is None:
            return None
        config.get_timing_cache().stored += b"conv 0.1 ms\n"
        header = {
            "version": self.trt.__version__,
            "compatible": "VERSION_COMPATIBLE" in config._flags,
            "most": config._profiles[0]._shapes["VIEWS"][2][0],
        }
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network.model.SerializeToString())

    @staticmethod
    def _monitored(config: IBuilderConfig) -> bool:
        """Report phases from another thread, as the real builder does; return whether to go on."""
        monitor = config.progress_monitor
        went_on = []

        def report() -> None:
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing", "Building engine", 3)
            went_on.extend(monitor.step_complete("Timing", step) for step in range(3))
            monitor.phase_finish("Timing")
            monitor.step_complete("Building engine", 0)
            monitor.phase_finish("Building engine")

        if monitor is None or not monitor._ready:
            return True
        thread = threading.Thread(target=report)
        thread.start()
        thread.join()
        return all(went_on)


class OnnxParser:
    trt: Any

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger, self._errors = network, logger, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        operator, name, description = self._errors[index]
        return SimpleNamespace(desc=lambda: description, node_name=lambda: name, node_operator=lambda: operator)

    def parse_from_file(self, model: str) -> bool:
        assert isinstance(model, str), "the bindings take no Path"
        try:
            graph = onnx.load(model).graph
        except google.protobuf.message.DecodeError:
            self._errors.append(("", "", "Failed to parse ONNX model"))
            return False
        bytes_in = {i.name for i in graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
        for node in graph.node:
            if node.op_type in self.trt.behaviour.unsupported_operators:
                self._errors.append((node.op_type, node.name, "operator is not supported"))
            if bytes_in & set(node.input) and node.op_type != "Cast":
                self._errors.append((node.op_type, node.name, "uint8 must be cast first"))
        self._network.model = onnx.load(model)
        return not self._errors


class Runtime:
    __slots__ = ("_logger", "engine_host_code_allowed")
    trt: Any

    def __init__(self, logger: ILogger) -> None:
        self._logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "Magic tag does not match")
            return None
        header, model = serialized_engine[len(MAGIC) :].split(b"\n", 1)
        facts = json.loads(header)
        if facts["compatible"] and not self.engine_host_code_allowed:
            self._logger.log(Severity.ERROR, "the plan holds host code, which is not allowed")
            return None
        if facts["version"] != self.trt.__version__ and not facts["compatible"]:
            self._logger.log(Severity.ERROR, "Version tag does not match")
            return None
        return ICudaEngine(self, onnx.load_from_string(model), facts["most"])


class ICudaEngine:
    def __init__(self, runtime: Runtime, model: onnx.ModelProto, most: int) -> None:
        self.runtime, self.model, self.most = runtime, model, most
        self._ports = {
            port.name: (port.type.tensor_type, mode)
            for ports, mode in ((model.graph.input, TensorIOMode.INPUT), (model.graph.output, TensorIOMode.OUTPUT))
            for port in ports
        }

    @property
    def num_io_tensors(self) -> int:
        return len(self._ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self._ports)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._ports[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self._ports[name][0].elem_type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if axis.dim_param else axis.dim_value for axis in self._ports[name][0].shape.dim)

    def create_execution_context(self) -> IExecutionContext | None:
        if self.runtime.trt.behaviour.no_memory:
            self.runtime._logger.log(Severity.ERROR, "Cuda Runtime (out of memory)")
            return None
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._session = onnxruntime.InferenceSession(
            engine.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        if not 1 <= shape[0] <= self._engine.most:
            message = f"{name}: {shape[0]} is not in the profile's [1, {self._engine.most}]"
            self._engine.runtime._logger.log(Severity.ERROR, message)
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        (count, *_), *_ = self._shapes.values()
        return (count, *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 0, "there is no stream on a CPU"
        inputs = {name: self._buffer(name).copy() for name in self._shapes}
        self._engine.runtime.trt.behaviour.calls.append(next(iter(self._shapes.values()))[0])
        names = [output.name for output in self._session.get_outputs()]
        noise = np.random.default_rng(0)
        for name, answer in zip(names, self._session.run(names, inputs), strict=True):
            wrong = (
                self._engine.runtime.trt.behaviour.noise * np.abs(answer).max() * noise.standard_normal(answer.shape)
            )
            self._buffer(name)[:] = answer + wrong
        return True

    def _buffer(self, name: str) -> np.ndarray:
        shape = self.get_tensor_shape(name)
        dtype = np.dtype(nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self._addresses[name]), dtype).reshape(shape)


def nptype(trt_type: DataType) -> type:
    return dict(_DTYPES.values())[trt_type]


def make_tensorrt(version: str, behaviour: Behaviour | None = None) -> SimpleNamespace:
    """Return a module of this version. Classes that know their module are subclassed: two modules can be alive."""
    module = SimpleNamespace(
        __name__="tensorrt",
        __spec__=ModuleSpec("tensorrt", None),  # torch looks at it while it is imported
        __version__=version,
        behaviour=behaviour or Behaviour(),
        NetworkDefinitionCreationFlag=enum.IntEnum(
            "NetworkDefinitionCreationFlag", _CREATION_FLAGS[version.split(".", maxsplit=1)[0]]
        ),
        nptype=nptype,
    )
    for plain in (
        ILogger,
        IProgressMonitor,
        BuilderFlag,
        MemoryPoolType,
        HardwareCompatibilityLevel,
        TensorIOMode,
        DataType,
        IBuilderConfig,
        ITimingCache,
        IOptimizationProfile,
        ICudaEngine,
        IExecutionContext,
    ):
        setattr(module, plain.__name__, plain)
    for bound in (Builder, OnnxParser, Runtime):
        setattr(module, bound.__name__, type(bound.__name__, (bound,), {"trt": module, "__slots__": ()}))
    return module
