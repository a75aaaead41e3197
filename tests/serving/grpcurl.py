#!/usr/bin/env python
"""What grpcurl does, for the flags of docs/serving.md: messages from a protoset, JSON in and out, nothing generated.

grpcurl -plaintext -protoset FILE -d @ HOST:PORT PACKAGE.SERVICE/METHOD < request.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-protoset", type=Path, required=True)
    parser.add_argument("-d", choices=["@"], required=True)
    parser.add_argument("target")
    parser.add_argument("method")
    flags = parser.parse_args()
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(flags.protoset.read_bytes()).file:
        pool.Add(file)
    service, _, name = flags.method.partition("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    with grpc.insecure_channel(flags.target) as channel:
        call = channel.unary_unary(
            f"/{flags.method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        answer = call(json_format.Parse(sys.stdin.read(), request()), timeout=30)
    sys.stdout.write(json_format.MessageToJson(answer))


if __name__ == "__main__":
    main()
