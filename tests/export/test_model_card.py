"""MODEL_CARD.md: golden, the same each time, and honest about what is not known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from export.model_card import model_card
from export.runners import graph_specs
from mvfoul.artifact import MODEL_CARD, Manifest, Origin, load_artifact, sha256_of
from mvfoul.clip import preset
from mvfoul.plan import PLAN, PlanSpec

GOLDEN = Path(__file__).parent / "golden" / "MODEL_CARD.md"
RECALLS = [0.5, 0.25, None, 1.0, 0.0, 0.125, 0.75, None]
EVALUATION = {
    "split": "test",
    "actions": 251,
    "score": 0.437,
    "action": {"accuracy": 0.55, "balanced_accuracy": 0.45, "recalls": RECALLS},
    "offence_severity": {"accuracy": 0.5, "balanced_accuracy": 0.424, "recalls": [0.5, 0.5, 0.5, 0.196]},
    "intervals": {
        "score": {"low": 0.39, "high": 0.49},
        "action": {"balanced_accuracy": {"low": 0.4, "high": 0.5}},
        "offence_severity": {"balanced_accuracy": {"low": 0.35, "high": 0.5}},
    },
}
CLIP = preset()
MANIFEST = Manifest(
    clip=CLIP,
    encoder=graph_specs(CLIP, 768)[0],
    head=graph_specs(CLIP, 768)[1],
    origin=Origin("ab" * 32, "mvit_v2_s", "attention", 7),
    precision="fp32",
    parity={
        "passed": True,
        "candidate": "ONNX Runtime 1.32.0 (CPU)",
        "actions": 13,
        "logits_max_abs_error": 2.5e-6,
        "features_min_cosine": 0.9999999,
    },
    temperatures={"action": 1.5, "offence_severity": 0.8},
    evaluation=EVALUATION,
    versions={"torch": "2.15.0", "onnx": "1.23.2"},
    created_at="2026-11-24T12:00:00+00:00",
)
FILES = {"encoder.onnx": (137_000_000, "cd" * 32), "head.onnx": (2_000_000, "ef" * 32)}


def test_the_card_is_the_golden_text():
    """Changed on purpose? Read the new one, then write it: `GOLDEN.write_text(model_card(MANIFEST, FILES))`."""
    assert model_card(MANIFEST, FILES) == GOLDEN.read_text()


def test_it_does_not_depend_on_the_time_of_the_export():
    assert model_card(replace(MANIFEST, created_at="2030-01-01T00:00:00+00:00"), FILES) == model_card(MANIFEST, FILES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluation": {}}, "**Not known**: the checkpoint brings no evaluation."),
        ({"evaluation": {"score": None}}, "**Not known**"),
        ({"evaluation": {"score": 0.25}}, "| Score | | 25.0 | not known |"),
        ({"temperatures": {"action": 1.0, "offence_severity": 1.0}}, "Probabilities are not calibrated"),
        ({"plan": PlanSpec(PLAN, "sm_90", "11.1.0.106")}, "`encoder.plan` is for sm_90 and TensorRT 11.1.0.106 only."),
    ],
)
def test_what_is_not_known_is_said(change, said):
    assert said in model_card(replace(MANIFEST, **change), FILES)


def test_the_artifact_s_own_card_has_the_hashes_of_its_files(tiny_artifact):
    card = (tiny_artifact / MODEL_CARD).read_text()
    listed = dict(re.findall(r"^\| `(\S+)` \| [\d,]+ \| `([0-9a-f]{64})` \|$", card, flags=re.MULTILINE))
    files = load_artifact(tiny_artifact).manifest.files
    assert listed == {name: digest for name, digest in files.items() if name != MODEL_CARD}
    assert listed["encoder.onnx"] == sha256_of(tiny_artifact / "encoder.onnx")
