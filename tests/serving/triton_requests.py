"""What the tests ask of a Triton, by its own client."""

from __future__ import annotations

import numpy as np
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS

ANSWERS = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)
_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}


def tensor(name, values):
    made = triton_grpc.InferInput(name, values.shape, _DATATYPES[values.dtype.name])
    made.set_data_from_numpy(values)
    return made


def ask(client, model, name, values, **options):
    """One request with one input; options of tritonclient's `infer`."""
    return client.infer(model, [tensor(name, values)], **options)


def status_of(client, model, name, values, **options):
    """ "OK", or the name of the gRPC status, such as "INVALID_ARGUMENT"."""
    try:
        ask(client, model, name, values, **options)
    except triton_grpc.InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode.")
    return "OK"


def noise(artifact, count, seed=0):
    shape = (count, *artifact.manifest.clip.view_shape)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def differences(result, scores):
    """Largest difference from what embedded graphs say, by tensor."""
    expected = (scores.action_probabilities, scores.offence_severity_probabilities, scores.view_weights)
    return {
        name: float(np.abs(result.as_numpy(name) - values).max())
        for name, values in zip(ANSWERS, expected, strict=True)
    }


def encoder_counts(client, version):
    """Views, calls, and calls by their batch size, as Triton counts them."""
    (found,) = client.get_inference_statistics("mvfoul_encoder", str(version)).model_stats
    batches = {entry.batch_size: entry.compute_infer.count for entry in found.batch_stats}
    return found.inference_count, found.execution_count, batches
