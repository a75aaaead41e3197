"""What users of a checkpoint must know that the graphs do not say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.caveats import caveats_of
from export.model_card import model_card
from mvfoul.artifact import load_artifact, read_manifest, write_manifest
from training.checkpoint import load_checkpoint


def test_an_ordinary_checkpoint_has_none(tiny_checkpoint, tiny_artifact):
    assert caveats_of(load_checkpoint(tiny_checkpoint)) == ()
    assert read_manifest(tiny_artifact).caveats == ()
    assert "What requests must keep to" not in model_card(read_manifest(tiny_artifact), {})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"options": {"view_embedding": True}}, "the first view of a request must be the live one"),
        ({"config": {"data": {"replay_aware": True}}}, "--data.replay-aware"),
    ],
)
def test_what_a_client_must_keep_to_is_said(tiny_checkpoint, change, word):
    (caveat,) = caveats_of(replace(load_checkpoint(tiny_checkpoint), **change))
    assert word in caveat


def test_caveats_travel_in_the_manifest_and_stand_in_the_card(tiny_artifact, tmp_path):
    copy = tmp_path / "artifact"
    copy.mkdir()
    for file in tiny_artifact.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = replace(read_manifest(copy), caveats=("The first view is live.",))
    write_manifest(copy, manifest)
    read = load_artifact(copy).manifest
    assert read.caveats == manifest.caveats
    assert "- The first view is live." in model_card(read, {})
