"""Triton's model repository, written from an artifact: `python -m serving.repository --artifact DIR --output REPO`.

    REPO/
      mvfoul_encoder/  config.pbtxt  <version>/model.plan, or model.onnx, or model.py with encoder.onnx and engines.py
      mvfoul_head/     config.pbtxt  <version>/model.onnx, or model.py with head.onnx and engines.py
      mvfoul/          config.pbtxt  <version>/  the ensemble of both; one version at a time

Each version folder has `artifact.json`, which says what it is. Its name is the artifact's version as a decimal number,
so a request that names it is answered by that artifact and no other. Nothing here runs inside Triton but
`triton_model.py`, which is copied.
"""
