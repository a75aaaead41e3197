"""Checkpointing, compiling and memory layout change how the backbone is computed, not what comes out."""

from __future__ import annotations

import pytest
import torch

from mvfoul.clip import preset
from training.model.execution import blocks_of, checkpoint_blocks, compile_backbone, use_channels_last
from training.model.names import BACKBONE_NAMES
from training.model.network import FoulNetwork


def _network(name):
    torch.manual_seed(0)
    size, frames = (32, 4) if name == "mvit_v2_s" else (32, 8)
    return FoulNetwork(name, "mean", clip=preset(num_frames=frames, size_px=size, short_side_px=size)).train()


def _gradients(network, views=3):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (views, *network.clip.view_shape), generator=generator, dtype=torch.uint8)
    torch.manual_seed(2)
    features = network.encode(pixels)
    features.square().sum().backward()
    return {name: p.grad for name, p in network.backbone.named_parameters() if p.grad is not None}


def _saved_bytes(network):
    """Bytes that a forward pass keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.encode(torch.zeros((3, *network.clip.view_shape), dtype=torch.uint8))
    return sum(kept.values())


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_checkpointing_gives_the_same_gradients_and_statistics_and_keeps_less(name):
    plain, checkpointed = _network(name), _network(name)
    assert checkpoint_blocks(checkpointed.backbone) == len(blocks_of(plain.backbone)) > 5
    expected, got = _gradients(plain), _gradients(checkpointed)
    assert expected.keys() == got.keys()
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=0)
    state, other = plain.state_dict(), checkpointed.state_dict()
    assert state.keys() == other.keys()
    assert not [key for key in state if not torch.equal(state[key], other[key])]
    assert _saved_bytes(checkpointed) < 0.6 * _saved_bytes(plain)


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_every_parameter_of_a_backbone_gets_a_gradient(name):
    # DistributedDataParallel waits for each of them.
    network = _network(name)
    assert _gradients(network).keys() == dict(network.backbone.named_parameters()).keys()


@pytest.mark.parametrize("name", ["mc3_18", "s3d"])
def test_channels_last_is_kept_through_the_backbone_and_gives_the_same_features(name):
    plain, last = _network(name).eval(), _network(name).eval()
    use_channels_last(last)
    layouts = []
    for module in last.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.register_forward_hook(
                lambda _module, _args, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last_3d))
            )
    views = torch.randint(0, 256, (2, *plain.clip.view_shape), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(last.encode(views), plain.encode(views), rtol=1e-4, atol=1e-4)
    # On a CPU S3D's poolings give the other layout; the convolutions before the first one keep it.
    assert all(layouts) if name == "mc3_18" else layouts[0]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_backbone_gives_the_same_gradients_for_any_number_of_views(checkpointing):
    import torch._dynamo.utils

    torch._dynamo.reset()
    plain, compiled = _network("mc3_18"), _network("mc3_18")
    if checkpointing:
        checkpoint_blocks(compiled.backbone)
    compile_backbone(compiled.backbone)
    torch._dynamo.utils.counters.clear()
    for views in (3, 2, 5, 4):
        expected, got = _gradients(plain, views), _gradients(compiled, views)
        for key in expected:
            # By length: rounding decides single values near zero differently behind each ReLU.
            assert (got[key] - expected[key]).norm() < 0.01 * expected[key].norm(), key
        for network in (plain, compiled):
            network.zero_grad()
    state, other = plain.state_dict(), compiled.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.allclose(state[key].float(), other[key].float(), atol=1e-3) for key in state)
    # Inductor makes a second one for few views on its own.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_checkpointing_lowers_the_peak_of_gpu_memory(name):
    def peak(network):
        network.cuda()
        torch.cuda.reset_peak_memory_stats()
        views = torch.zeros((8, *network.clip.view_shape), dtype=torch.uint8, device="cuda")
        network.encode(views).sum().backward()
        return torch.cuda.max_memory_allocated()

    plain, checkpointed = _network(name), _network(name)
    checkpoint_blocks(checkpointed.backbone)
    before = peak(plain)
    del plain
    torch.cuda.empty_cache()
    assert peak(checkpointed) < before
