"""What training, export and serving must agree on: labels, the clip contract, the artifact.

Imports the standard library, numpy and (in `mvfoul.video`) PyAV. Never torch, grpc or onnx: the serving image ships
this package.
"""
