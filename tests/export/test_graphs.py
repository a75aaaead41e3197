from __future__ import annotations

import torch
from torch import nn

from export.graphs import EncoderGraph, HeadGraph, fold_linear_pairs


def test_the_two_graphs_are_the_network_for_one_action(source):
    network, temperatures = source.network, {"action": 2.0, "offence_severity": 0.5}
    views = torch.randint(0, 256, (3, *network.clip.view_shape), dtype=torch.uint8)
    with torch.inference_mode():
        features = EncoderGraph(network)(views)
        action, severity, action_p, severity_p, weights = HeadGraph(network, temperatures)(features)
        expected = network(views, torch.tensor([3]))
    torch.testing.assert_close(action, expected.action[0])
    torch.testing.assert_close(severity, expected.offence_severity[0])
    torch.testing.assert_close(weights, expected.view_weights[0])
    torch.testing.assert_close(action_p, torch.softmax(expected.action[0] / 2.0, 0))
    torch.testing.assert_close(severity_p, torch.softmax(expected.offence_severity[0] / 0.5, 0))


def test_linear_pairs_become_one_layer_with_the_same_answer():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 7), nn.Dropout(0.5), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2)
    ).eval()
    folded = fold_linear_pairs(layers)
    assert [type(layer).__name__ for layer in folded] == ["LayerNorm", "Linear", "ReLU", "Linear"]
    x = torch.randn(5, 6)
    torch.testing.assert_close(folded(x), layers(x))


def test_folding_leaves_the_network_as_it_was(source):
    network = source.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    HeadGraph(network, {"action": 1.0, "offence_severity": 1.0})
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
