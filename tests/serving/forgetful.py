"""A proxy in front of a real server that loses one answer: the server has done what was asked, the client gets none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


class _Forgetful(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, lost: int) -> None:
        self._stub, self._lost = stub, lost
        self._numbers = itertools.count()

    def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        answer = self._stub.ModelInfer(request)
        if next(self._numbers) == self._lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        return answer


@contextmanager
def losing(target: str, *, answer: int = 0) -> Iterator[str]:
    """Yield the address of a proxy to `target` that loses the answer of this number, from 0."""
    proxy = grpc.server(futures.ThreadPoolExecutor(2))
    with grpc.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Forgetful(stub, answer), proxy)
        port = proxy.add_insecure_port("127.0.0.1:0")
        proxy.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            proxy.stop(None).wait()
