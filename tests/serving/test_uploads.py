"""Messages that never end, over gRPC: so many are read at a time, and none for ever."""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from mvfoul.errors import DeadlineError
from serving.admission import Admission
from serving.client import FoulClient
from serving.uploads import UploadInterceptor

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def begin():
    """`begin(target)`: send the head of a request and keep its message; returns the call and what ends it."""
    with ThreadPoolExecutor(8) as pool:
        ends, channels = [], []

        def begin(target):
            channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
            messages = queue.SimpleQueue()
            ask = channel.stream_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
            call = pool.submit(ask, iter(messages.get, None), timeout=60)
            ends.append(messages)
            channels.append(channel)
            return call, messages

        yield begin
        for end in ends:
            end.put(None)
        for channel in channels:
            channel.close()


def test_uploads_that_stall_leave_room_for_the_probes_and_one_more_is_refused_unread(
    start_server, begin, clips, wait_until
):
    with start_server("--max-in-flight", "2") as server, FoulClient(server.grpc) as client:
        stalled = [begin(server.grpc) for _ in range(2)]

        def refused():
            call, messages = begin(server.grpc)
            try:
                messages.put(None)
                call.result(30)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "limit" in error.details()

        wait_until(refused, "a full house")
        assert client.ready()
        for call, messages in stalled:
            messages.put(None)
            with pytest.raises(grpc.RpcError) as caught:
                call.result(30)
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "the request has no message.",
            )
            assert dict(caught.value.trailing_metadata())["x-request-id"]
        assert client.classify(clips[:1]).view_weights == (1.0,)


def test_a_message_that_does_not_come_is_not_waited_for():
    class Silence:
        async def read(self):
            await asyncio.sleep(30)

    interceptor = UploadInterceptor(None, Admission(1), timeout_s=0.05)
    with pytest.raises(DeadlineError, match=r"did not arrive within 0\.05 s"):
        asyncio.run(interceptor._read(Silence()))
