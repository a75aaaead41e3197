"""Messages of Triton's extensions that KServe's copy of the protocol lacks or numbers differently.

`tritonclient` has them, but it cannot be imported beside `kserve`: both register the same names. These live in a
descriptor pool of their own. Field numbers: grpc_service.proto of triton-inference-server/common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_STRING: Final = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_UINT64: Final = descriptor_pb2.FieldDescriptorProto.TYPE_UINT64
_OPTIONAL: Final = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL

_MESSAGES: Final[Mapping[str, tuple[tuple[str, int, Any], ...]]] = {
    "Empty": (),
    "SystemSharedMemoryRegisterRequest": (
        ("name", 1, _STRING),
        ("key", 2, _STRING),
        ("offset", 3, _UINT64),
        ("byte_size", 4, _UINT64),
    ),
    "SystemSharedMemoryUnregisterRequest": (("name", 1, _STRING),),
    "RepositoryModelLoadRequest": (("repository_name", 1, _STRING), ("model_name", 2, _STRING)),
    "RepositoryModelUnloadRequest": (("repository_name", 1, _STRING), ("model_name", 2, _STRING)),
}


def _build() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="triton_extension.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            message.field.add(name=field, number=number, type=kind, label=_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _MESSAGES
    }


_CLASSES: Final = _build()


def message(kind: str, /, **fields: Any) -> Message:
    """Return a message of `_MESSAGES`."""
    return _CLASSES[kind](**fields)


def empty(data: bytes) -> Message:
    """Read a response of which nothing is used."""
    return _CLASSES["Empty"].FromString(data)
