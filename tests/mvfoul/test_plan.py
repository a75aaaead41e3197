from __future__ import annotations

from dataclasses import replace

import pytest

from mvfoul.errors import ArtifactError
from mvfoul.plan import PLAN, PlanSpec, TensorRTHost, check_plan, version_tuple

H100 = TensorRTHost("NVIDIA H100 80GB HBM3", "sm_90", "11.1.0.106")
SPEC = PlanSpec(PLAN, "sm_90", "11.1.0.106", gpu=H100.gpu, opt_views=4, max_views=16)


def test_a_plan_runs_where_it_was_built():
    assert check_plan(SPEC, H100) == ()


@pytest.mark.parametrize(
    ("here", "why"),
    [
        (replace(H100, gpu_architecture="sm_86"), "built for sm_90 and this GPU is sm_86"),
        (replace(H100, gpu_architecture="sm_100"), "built for sm_90 and this GPU is sm_100"),
        (replace(H100, tensorrt_version="11.1.0.107"), r"built with TensorRT 11\.1\.0\.106 and here is 11\.1\.0\.107"),
        (replace(H100, tensorrt_version="10.16.1.11"), r"built with TensorRT 11\.1\.0\.106 and here is 10\.16\.1\.11"),
    ],
)
def test_a_plan_for_another_gpu_or_tensorrt_is_refused_with_the_command_that_builds_it(here, why):
    with pytest.raises(ArtifactError, match=rf"encoder.plan cannot run here: .*{why}.*python -m export.plan"):
        check_plan(SPEC, here)


def test_both_reasons_are_said_at_once():
    with pytest.raises(ArtifactError, match=r"this GPU is sm_86 and it was built with TensorRT"):
        check_plan(SPEC, TensorRTHost("NVIDIA A10", "sm_86", "10.16.1.11"))


def test_another_model_of_the_same_architecture_is_a_caveat_unless_the_plan_is_built_for_all_of_it():
    h200 = replace(H100, gpu="NVIDIA H200")
    (caveat,) = check_plan(SPEC, h200)
    assert "NVIDIA H100 80GB HBM3" in caveat
    assert "NVIDIA H200" in caveat
    assert check_plan(replace(SPEC, hardware_compatibility="same-compute-capability"), h200) == ()


@pytest.mark.parametrize(
    ("architecture", "runs"), [("sm_80", True), ("sm_100", True), ("sm_120a", True), ("sm_75", False)]
)
def test_an_ampere_plus_plan_runs_on_ampere_and_later(architecture, runs):
    plan, here = replace(SPEC, hardware_compatibility="ampere-plus"), TensorRTHost("x", architecture, "11.1.0.106")
    if runs:
        assert check_plan(plan, here) == ()
    else:
        with pytest.raises(ArtifactError, match="needs sm_80 or later and this GPU is sm_75"):
            check_plan(plan, here)


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ("11.1.0.106", "11.4.0.106", True),
        ("10.16.1.11", "11.1.0.106", True),
        ("11.4.0.106", "11.1.0.106", False),
        ("11.1.0.106", "10.16.1.11", False),
        ("10.16.1.11", "12.0.0.1", False),
    ],
)
def test_a_version_compatible_plan_is_read_by_later_versions_up_to_the_next_major_one(built, here, runs):
    plan = replace(SPEC, tensorrt_version=built, version_compatible=True)
    if runs:
        assert check_plan(plan, replace(H100, tensorrt_version=here)) == ()
    else:
        with pytest.raises(ArtifactError, match=rf"TensorRT {built} or later and here is {here}"):
            check_plan(plan, replace(H100, tensorrt_version=here))


def test_versions_are_compared_by_number_not_by_letter():
    assert version_tuple("10.9.0") < version_tuple("10.16.1.11") < version_tuple("11.0")
    assert version_tuple("11.1.0.106.post1") == (11, 1, 0, 106)


def test_a_manifest_with_nonsense_about_its_plan_is_refused():
    with pytest.raises(ArtifactError, match="do not ascend"):
        replace(SPEC, opt_views=17)
    with pytest.raises(ArtifactError, match="hardware compatibility 'turing'"):
        replace(SPEC, hardware_compatibility="turing")
    with pytest.raises(ArtifactError, match="'ninety' is no GPU architecture"):
        check_plan(replace(SPEC, hardware_compatibility="ampere-plus"), replace(H100, gpu_architecture="ninety"))
    with pytest.raises(ArtifactError, match="'' is no version of TensorRT"):
        check_plan(SPEC, replace(H100, tensorrt_version=""))
