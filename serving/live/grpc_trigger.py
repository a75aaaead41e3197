"""Triggers over gRPC, for programs that speak nothing else: one method, with a message that every gRPC library has.

    service Console {                        // package mvfoul.live
      rpc Trigger(google.protobuf.Struct) returns (google.protobuf.Struct);
    }

The request's fields are those of `POST /api/trigger`, the answer is the incident that was opened. Where tokens are
asked for, the metadata has it: `authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from pydantic import ValidationError

from mvfoul.errors import ConfigError, UnauthenticatedError
from serving.access import Access
from serving.live.config import LiveConfig
from serving.live.desk import Desk
from serving.live.login import who_is
from serving.live.trigger import NotInBufferError, TriggerBody, open_incident

SERVICE: Final = "mvfoul.live.Console"
_STOP_S: Final = 1.0


@contextmanager
def grpc_triggers(config: LiveConfig, desk: Desk, access: Access) -> Iterator[str]:
    """Listen where the flags say, encrypted if the page is, and yield the address.

    Raises:
        ConfigError: It cannot be bound.
    """
    # Late, so that a console without it does not pay for it.
    import grpc
    from google.protobuf.json_format import MessageToDict, ParseDict
    from google.protobuf.struct_pb2 import Struct

    def trigger(request: Any, context: Any) -> Any:
        try:
            by = who_is(access.door, dict(context.invocation_metadata()).get("authorization", ""))
            incident = open_incident(TriggerBody(**MessageToDict(request)), config, desk, by=by)
        except UnauthenticatedError as error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except (ValidationError, NotInBufferError, TypeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        # Through JSON, which knows no tuples.
        return ParseDict(json.loads(json.dumps(incident.to_json())), Struct())

    handler = grpc.unary_unary_rpc_method_handler(
        trigger, request_deserializer=Struct.FromString, response_serializer=Struct.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=2, thread_name_prefix="grpc"))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Trigger": handler}),))
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        address = f"{host}:{config.grpc_port}"
        tls = access.tls
        port = server.add_secure_port(address, tls.grpc_credentials()) if tls else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"--grpc-port {config.grpc_port} on {config.host} cannot be used. Choose another.") from error
    server.start()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop(_STOP_S).wait()
