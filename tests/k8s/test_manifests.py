"""The manifests against the schemas of Kubernetes and of the operators, in which a misspelt field is an error."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from tests.k8s import manifests
from tests.k8s.validation import faults


@pytest.mark.parametrize("name", manifests.FILES)
def test_every_object_is_what_its_kind_accepts(name):
    found = {manifests.where(d): faults(d) for d in manifests.documents(name)}
    assert not {where: what for where, what in found.items() if what}


@pytest.mark.parametrize("overlay", manifests.OVERLAYS)
def test_every_rendered_object_is_what_its_kind_accepts(overlay):
    found = {manifests.where(document): faults(document) for document in manifests.render(overlay)}
    assert found
    assert not {where: what for where, what in found.items() if what}


def _places(value: object, *path: str | int) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield each field: the path of its object, and its name. Names that users choose (labels, keys) are no fields."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _places(item, *path, number)
    if isinstance(value, dict):
        for name, item in value.items():
            yield path, name
            if name not in FREE:
                yield from _places(item, *path, name)


FREE = ("labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits", "data", "stringData")
"""Objects whose names are the user's."""


def _misspelt(document: manifests.Document, path: tuple[str | int, ...], name: str) -> manifests.Document:
    changed = copy.deepcopy(document)
    place = changed
    for step in path:
        place = place[step]
    place[name + "s"] = place.pop(name)
    return changed


def _free(path: tuple[str, ...], document: manifests.Document) -> bool:
    """Whether this kind's names are the user's here: a Service's selector, and the keys of each of KEDA's triggers."""
    ends = {"Service": ("spec", "selector"), "ScaledObject": ("spec", "triggers", "metadata")}
    return path == ends.get(document["kind"])


def _all_fields() -> dict[str, list[tuple[manifests.Document, tuple[str | int, ...], str]]]:
    """Return, by kind, each distinct field that any file uses, with an object that has it."""
    found: dict[str, dict[tuple[str, ...], tuple[manifests.Document, tuple[str | int, ...], str]]] = {}
    for document in [d for name in manifests.FILES for d in manifests.documents(name)]:
        for path, field in _places(document):
            names = tuple(step for step in path if isinstance(step, str))
            kind = document["kind"]
            if _free(names, document):
                continue
            if kind in ("Job", "Deployment") and "template" in names:  # one schema for both
                kind, names = "Pod template", names[names.index("template") :]
            found.setdefault(kind, {}).setdefault((*names, field), (document, path, field))
    return {kind: list(fields.values()) for kind, fields in found.items()}


FIELDS = _all_fields()


@pytest.mark.parametrize("kind", sorted(FIELDS))
def test_a_misspelt_field_is_found_wherever_it_is(kind):
    missed = [
        f"{manifests.where(document)}: {path}.{field}"
        for document, path, field in FIELDS[kind]
        if not faults(_misspelt(document, path, field))
    ]
    assert not missed


def test_a_value_of_another_type_is_found():
    job = manifests.document("export-job.yaml", "Job")
    job["spec"]["backoffLimit"] = "two"
    assert "two" in faults(job)[0]
