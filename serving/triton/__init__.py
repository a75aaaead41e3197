"""The encoder and the head in a Triton server, asked over gRPC: what the transformer does with decoded views."""
