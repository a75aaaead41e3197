"""A server of Triton's protocol that answers as one artifact's golden.npz says: to fail where a test wants it to.

Not of our own code: the genuine Triton can neither be told to hang nor show what reached it. It takes `tritonclient`'s
messages, so that it does not share ours.
"""
# ruff: noqa: N802  # the names and arguments are gRPC's

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.serving.triton_requests import ANSWERS


class GoldenTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Knows every version of every model."""

    def __init__(self, artifact):
        self._golden = artifact.golden()
        self.loaded = []
        """Models that it was told to load."""
        self.before_answer = lambda _method, _model, _request, _context: None
        """Called with each call; aborts it by the context, or returns late."""

    def RepositoryIndex(self, request, context):
        self.before_answer("RepositoryIndex", "", request, context)
        return pb.RepositoryIndexResponse()

    def RepositoryModelLoad(self, request, context):
        self.loaded.append(request.model_name)
        self.before_answer("RepositoryModelLoad", request.model_name, request, context)
        return pb.RepositoryModelLoadResponse()

    def ModelReady(self, request, context):
        self.before_answer("ModelReady", request.name, request, context)
        return pb.ModelReadyResponse(ready=True)

    def ModelInfer(self, request, context):
        self.before_answer("ModelInfer", request.model_name, request, context)
        encoder = request.model_name.endswith("_encoder")
        found = {"FEATURES": np.zeros((1, 4), np.float32)} if encoder else {n: self._golden[n] for n in ANSWERS}
        return pb.ModelInferResponse(
            model_name=request.model_name,
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(name=name, datatype="FP32", shape=values.shape)
                for name, values in found.items()
            ],
            raw_output_contents=[np.ascontiguousarray(values, "<f4").tobytes() for values in found.values()],
        )


@contextmanager
def serving(servicer):
    """Serve on loopback; yields host:port."""
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()
