import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvfoul.errors import ConfigError
from training.model.aggregation import AGGREGATION_NAMES, build_aggregation

D = 6

every_aggregation = pytest.mark.parametrize("name", AGGREGATION_NAMES)


def build(name, seed=0):
    torch.manual_seed(seed)
    return build_aggregation(name, feature_dim=D)


def batch(counts, seed, scale=1.0):
    """Features `[B, V, D]`, zero on padding, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    return scale * torch.randn(len(counts), max(counts), D, generator=generator) * mask.unsqueeze(-1), mask


counts_of_views = st.lists(st.integers(1, 5), min_size=1, max_size=4)
scales = st.sampled_from([1e-4, 1.0, 1e4])


@every_aggregation
@given(counts=counts_of_views, seed=st.integers(0, 999), scale=scales)
@settings(max_examples=30, deadline=None)
def test_view_weights_sum_to_1_over_real_views_and_are_0_on_padding(name, counts, seed, scale):
    features, mask = batch(counts, seed, scale)
    _, weights = build(name)(features, mask)
    assert weights.shape == mask.shape
    assert (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(counts)))


@every_aggregation
@given(counts=counts_of_views, seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_a_row_is_the_same_alone_and_in_a_batch(name, counts, seed):
    features, mask = batch(counts, seed)
    aggregation = build(name)
    pooled, weights = aggregation(features, mask)
    for row, count in enumerate(counts):
        alone, alone_weights = aggregation(features[row : row + 1, :count], mask[row : row + 1, :count])
        torch.testing.assert_close(pooled[row : row + 1], alone)
        torch.testing.assert_close(weights[row : row + 1, :count], alone_weights)


@every_aggregation
@given(order=st.permutations(range(4)), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_permuting_the_views_permutes_the_weights_and_keeps_the_rest(name, order, seed):
    features, mask = batch([4, 4], seed)
    aggregation = build(name)
    pooled, weights = aggregation(features, mask)
    again, permuted = aggregation(features[:, order], mask)
    torch.testing.assert_close(again, pooled)
    torch.testing.assert_close(permuted, weights[:, order])


@every_aggregation
def test_equal_views_weigh_the_same(name):
    features = torch.randn(1, 1, D).expand(2, 3, D)
    _, weights = build(name)(features, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full((2, 3), 1 / 3))


@every_aggregation
def test_features_of_zeros_give_uniform_weights_and_finite_gradients(name):
    aggregation = build(name)
    features = torch.zeros(2, 3, D, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    pooled, weights = aggregation(features, mask)
    (pooled.sum() + (weights * torch.arange(3)).sum()).backward()
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]))
    assert pooled.isfinite().all()
    for gradient in (features.grad, *(p.grad for p in aggregation.parameters())):
        assert gradient.isfinite().all()


def test_max_takes_the_largest_feature_and_weighs_by_the_share_of_features():
    features = torch.tensor([[[1.0, -5.0, 2.0, 0.0], [0.0, -6.0, 3.0, -1.0], [9.0, 9.0, 9.0, 9.0]]])
    pooled, weights = build("max")(features, torch.tensor([[True, True, False]]))
    assert pooled.tolist() == [[1.0, -5.0, 3.0, 0.0]]
    assert weights.tolist() == [[0.75, 0.25, 0.0]]


def test_mean_is_the_mean_over_real_views():
    features = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [0.0, 0.0]]])
    pooled, weights = build("mean")(features, torch.tensor([[True, True, False]]))
    assert pooled.tolist() == [[2.0, 4.0]]
    assert weights.tolist() == [[0.5, 0.5, 0.0]]


def test_attention_is_the_formula_of_the_paper_computed_view_by_view():
    aggregation = build("attention", seed=1)
    features, mask = batch([3], seed=2)
    pooled, weights = aggregation(features, mask)

    projected = [f @ aggregation.attention_weights.detach() for f in features[0]]
    scores = [[max(0.0, float(a @ b)) for b in projected] for a in projected]
    total = sum(sum(row) for row in scores)
    expected = [sum(row) / total for row in scores]
    assert weights[0].tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(pooled[0], sum(w * a for w, a in zip(expected, projected, strict=True)))


def test_an_unknown_aggregation_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown aggregation 'sum'; known: max, mean, attention"):
        build_aggregation("sum", feature_dim=D)
