import pytest
import torch
from torch import nn

from mvfoul.clip import preset
from training.model.aggregation import AGGREGATION_NAMES
from training.model.backbone import BACKBONE_NAMES
from training.model.network import FoulNetwork, MVNetwork, Normalise, default_clip, pad_features

COUNTS = (2, 1, 4, 3)

# MViT's features are its class token. In the last block the class token's query is neither pooled nor given a position,
# and nothing reads what the other tokens' queries give: these have a gradient of zeros, in torchvision's network too.
MVIT_UNREACHED = {
    f"backbone.network.blocks.15.attn.{name}" for name in ("rel_pos_h", "rel_pos_w", "rel_pos_t", "pool_q.pool.weight")
}


def small_clip(backbone):
    return preset(num_frames=8 if backbone == "s3d" else 4, size_px=32)


def pixels(clip, views, seed=0):
    """Views with coarse structure: of pure noise all look the same to a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(views, 3, 2, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=clip.view_shape[1:], mode="trilinear")
    return (255 * smooth).to(torch.uint8)


@pytest.fixture(scope="module", params=[(b, a) for b in BACKBONE_NAMES for a in AGGREGATION_NAMES], ids="-".join)
def network(request):
    """Every combination, with BatchNorm statistics of real data: with fresh ones S3D answers the same to all."""
    torch.manual_seed(0)
    built = FoulNetwork(*request.param, clip=small_clip(request.param[0]))
    norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm3d)]
    for module in norms:
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        built.encode(pixels(built.clip, 12, seed=9))
    return built.eval()


@pytest.fixture(scope="module", params=AGGREGATION_NAMES)
def head(request):
    """A network of which only `classify` is used."""
    torch.manual_seed(0)
    return FoulNetwork("mc3_18", request.param, clip=small_clip("mc3_18")).eval()


@torch.inference_mode()
def test_batched_is_the_same_as_one_by_one(network):
    views = pixels(network.clip, sum(COUNTS))
    together = network(views, torch.tensor(COUNTS))
    assert together.action.std(dim=0).max() > 1e-3, "actions are told apart, or this test could not fail"
    for row, own in enumerate(views.split(COUNTS)):
        alone = network(own, torch.tensor([len(own)]))
        for name in ("action", "offence_severity"):
            torch.testing.assert_close(
                getattr(together, name)[row : row + 1], getattr(alone, name), rtol=1e-3, atol=1e-4
            )
        weights = together.view_weights[row : row + 1]
        torch.testing.assert_close(weights[:, : len(own)], alone.view_weights, rtol=1e-3, atol=1e-4)
        assert (weights[:, len(own) :] == 0).all()


@torch.inference_mode()
def test_one_view_weighs_1(network):
    logits = network(pixels(network.clip, 2), torch.tensor([1, 1]))
    assert logits.view_weights.tolist() == [[1.0], [1.0]]
    assert logits.action.shape == (2, 8)
    assert logits.offence_severity.shape == (2, 4)


def test_gradients_reach_every_parameter(network):
    network.zero_grad()
    logits = network(pixels(network.clip, 5), torch.tensor([2, 3]))
    (logits.action.square().sum() + logits.offence_severity.square().sum()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    unreached = {name for name, gradient in gradients.items() if not gradient.any()}
    assert unreached == (MVIT_UNREACHED if network.backbone_name == "mvit_v2_s" else set())


@torch.inference_mode()
def test_the_guides_network_answers_the_same(network):
    guide = MVNetwork(network.backbone_name, network.aggregation_name, clip=network.clip).eval()
    guide.load_state_dict(network.state_dict())
    views = pixels(network.clip, 6)
    for ours, theirs in zip(
        network(views, torch.tensor([3, 3])), guide(views.view(2, 3, *views.shape[1:])), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("filling", [0.0, 1e30, float("inf"), float("-inf"), float("nan")])
@torch.inference_mode()
def test_padding_changes_nothing_whatever_it_holds(head, filling):
    features = torch.randn(2, 2, head.feature_dim, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, True], [True, False]])
    features[1, 1] = filling
    padded = torch.cat((features, torch.full((2, 3, head.feature_dim), filling)), dim=1)
    wide_mask = nn.functional.pad(mask, (0, 3))
    wide = head.classify(padded, wide_mask)
    for row, count in ((0, 2), (1, 1)):
        own = head.classify(features[row : row + 1, :count], mask[row : row + 1, :count])
        torch.testing.assert_close(wide.action[row : row + 1], own.action)
        torch.testing.assert_close(wide.offence_severity[row : row + 1], own.offence_severity)
        torch.testing.assert_close(wide.view_weights[row, :count], own.view_weights[0])
    assert (wide.view_weights[~wide_mask] == 0).all()


def test_padding_of_nan_does_not_reach_the_gradients(head):
    features = torch.randn(1, 3, head.feature_dim)
    features[0, 2] = torch.nan
    features.requires_grad_()
    head.zero_grad()
    head.classify(features, torch.tensor([[True, True, False]])).action.sum().backward()
    assert (features.grad[0, 2] == 0).all()
    assert all(p.grad.isfinite().all() for p in head.aggregation.parameters())


def test_features_of_zeros_give_finite_logits_and_gradients(head):
    head.zero_grad()
    features = torch.zeros(2, 3, head.feature_dim, requires_grad=True)
    logits = head.classify(features, torch.tensor([[True, True, True], [True, False, False]]))
    sum(value.square().sum() for value in logits).backward()
    assert all(value.isfinite().all() for value in logits)
    reached = [features.grad, *(p.grad for p in head.parameters() if p.grad is not None)]
    assert all(gradient.isfinite().all() for gradient in reached)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_classify_stays_in_float32_under_autocast(head, dtype):
    features = 1e4 * torch.randn(2, 3, head.feature_dim, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 3, dtype=torch.bool)
    expected = head.classify(features, mask)
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = head.classify(features, mask)
    for ours, theirs in zip(under_autocast, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs)


@torch.inference_mode()
def test_permuting_the_views_permutes_the_weights_and_keeps_the_logits(head):
    features = torch.randn(2, 4, head.feature_dim)
    mask = torch.ones(2, 4, dtype=torch.bool)
    order = [2, 0, 3, 1]
    logits, permuted = head.classify(features, mask), head.classify(features[:, order], mask)
    torch.testing.assert_close(permuted.action, logits.action, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted.offence_severity, logits.offence_severity, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted.view_weights, logits.view_weights[:, order])


def test_normalisation_is_x_over_255_minus_mean_over_std():
    clip = default_clip("mvit_v2_s")
    every_value = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 3, 2, 16, 16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in (clip.mean, clip.std))
    normalised = Normalise(clip)(every_value)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised, (every_value / 255 - mean) / std)


def test_each_backbone_is_normalised_as_its_kinetics_weights_were_trained():
    assert default_clip("mvit_v2_s").mean == (0.45, 0.45, 0.45)
    assert default_clip("r3d_18").mean == (0.43216, 0.394666, 0.37645)


@torch.inference_mode()
def test_the_guides_network_takes_a_mask_and_never_looks_at_padding():
    clip = small_clip("mc3_18")
    guide = MVNetwork("mc3_18", "mean", clip=clip).eval()
    views = pixels(clip, 4).view(2, 2, *clip.view_shape)
    mask = torch.tensor([[True, True], [True, False]])
    expected = guide(views, mask)
    views[1, 1] = 255
    for ours, theirs in zip(guide(views, mask), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_the_guides_network_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match=r"are \(8, 5\); SoccerNet-MVFoul has 8 and 4"):
        MVNetwork("mc3_18", "mean", num_classes_severity=5)


def test_features_are_padded_to_the_action_with_most_views():
    padded, mask = pad_features(torch.arange(1.0, 7.0).view(6, 1), torch.tensor([1, 3, 2]))
    assert padded[..., 0].tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
    assert mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]


@pytest.mark.parametrize("counts", [[1, 3], [0, 6], [7]])
def test_view_counts_that_do_not_fit_the_views_are_refused(counts):
    with pytest.raises(ValueError, match="must each be at least 1 and sum to N = 6"):
        pad_features(torch.zeros(6, 1), torch.tensor(counts))


def _with_embedding(kind_vectors=None):
    network = FoulNetwork("mc3_18", "mean", clip=small_clip("mc3_18"), view_embedding=True).eval()
    if kind_vectors is not None:
        with torch.no_grad():
            network.view_embedding.weight.copy_(kind_vectors)
    return network


def test_a_view_embedding_starts_without_effect_and_then_tells_live_from_replay():
    torch.manual_seed(0)
    features, mask = torch.randn(2, 3, 512), torch.tensor([[True, True, True], [True, True, False]])
    kinds = torch.tensor([[0, 1, 1], [1, 1, 0]])
    network = _with_embedding()
    assert torch.equal(network.classify(features, mask, kinds).action, network.classify(features, mask).action)
    with torch.no_grad():
        network.view_embedding.weight.copy_(torch.randn(2, 512))
    changed = network.classify(features, mask, kinds).action
    default = network.classify(features, mask).action
    assert torch.equal(changed[0], default[0])  # the first is live, the others are replays
    assert not torch.allclose(changed[1], default[1])
    other_padding = kinds.clone()
    other_padding[1, 2] = 1
    assert torch.equal(network.classify(features, mask, other_padding).action, changed)


def test_a_view_embedding_learns_and_its_kinds_follow_the_views():
    network = _with_embedding(torch.randn(2, 512))
    views = torch.randint(0, 256, (3, *network.clip.view_shape), dtype=torch.uint8)
    counts, kinds = torch.tensor([1, 2]), torch.tensor([1, 0, 1])
    network(views, counts, kinds).action.sum().backward()
    assert network.view_embedding.weight.grad.abs().sum(dim=1).gt(0).all()
    with torch.no_grad():
        together = network(views, counts, kinds).action
        alone = network(views[1:], torch.tensor([2]), kinds[1:]).action
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
