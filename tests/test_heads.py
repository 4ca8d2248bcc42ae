"""Heads, tasks and converted norms: exact over a streamed map, and right against what they claim to be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamingcnn import StreamingModule, check
from streamingcnn.training.batchnorm import convert_batchnorm
from streamingcnn.training.heads import HEADS, AttentionHead, MeanHead, TopHead, make_head
from streamingcnn.training.tasks import Cumulative, Task, balanced


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())


def loss_of(net: nn.Module, image: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(image).square().sum().backward()
    found = {}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_over_a_streamed_map_is_exact(name: str, outputs: int) -> None:
    net = nn.Sequential(trunk(), make_head(name, 8, outputs))
    result = check(net, torch.rand(2, 3, 70, 55), tile=16)
    assert result.ok, str(result)


@pytest.mark.parametrize("name", HEADS)
def test_where_an_answer_comes_from_is_a_map_of_the_same_parameters(name: str) -> None:
    head = make_head(name, 8, 1).double()
    body, image = trunk().double().eval(), torch.rand(1, 3, 66, 50, dtype=torch.float64)
    with torch.no_grad():
        streamed = StreamingModule(nn.Sequential(body, head.where()).eval(), tile=16)(image)
        torch.testing.assert_close(streamed, head.where()(body(image)), atol=1e-10, rtol=0)
    assert streamed.shape == (1, 1, 17, 13)
    assert {id(each) for each in head.where().parameters()} <= {id(each) for each in head.parameters()}


def test_the_mean_head_is_a_linear_layer_behind_the_mean() -> None:
    features, head = torch.randn(2, 8, 5, 7), MeanHead(8, 3)
    weight, bias = head.logits.weight.flatten(1), head.logits.bias
    torch.testing.assert_close(head(features), functional.linear(features.mean((2, 3)), weight, bias))


def test_the_top_head_averages_the_highest_positions() -> None:
    features, head = torch.randn(2, 8, 10, 10), TopHead(8, 2, share=0.1)
    highest = head.logits(features).flatten(2).sort(2, descending=True).values[..., :10].mean(2)
    torch.testing.assert_close(head(features), highest)
    with pytest.raises(ValueError, match="share=0"):
        TopHead(8, share=0.0)


def test_gated_attention_is_its_formula() -> None:
    features, head = torch.randn(1, 8, 3, 4), AttentionHead(8, 2, hidden=5)
    bag = features[0].flatten(1).T  # one row per position, as CLAM has it

    def linear(layer: nn.Module, rows: Tensor) -> Tensor:
        return functional.linear(rows, layer.get_parameter("weight").flatten(1), layer.get_parameter("bias"))

    weights = head.weights
    scores = linear(weights.score, torch.tanh(linear(weights.content, bag)) * torch.sigmoid(linear(weights.gate, bag)))
    attention = scores.softmax(0)
    torch.testing.assert_close(head(features), head.linear(attention.T @ bag))
    torch.testing.assert_close(head.where()(features).flatten(), attention.flatten())


def test_heads_go_with_volumes_and_signals() -> None:
    for name in HEADS:
        assert make_head(name, 4, 2, space=3)(torch.randn(1, 4, 3, 4, 5)).shape == (1, 2)
        assert make_head(name, 4, 2, space=1)(torch.randn(1, 4, 9)).shape == (1, 2)
    with pytest.raises(ValueError, match="there is no head 'max'; there are mean, top, attention"):
        make_head("max", 4, 1)


# ----------------------------------------------------------------------------------------------------- tasks


def test_two_classes_are_one_logit() -> None:
    task, result, labels = Task("binary", ("a", "b"), (0.5, 2.0)), torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    each = functional.binary_cross_entropy_with_logits(result[:, 0], labels.float(), reduction="none")
    torch.testing.assert_close(task.loss(result, labels), (each * torch.tensor([0.5, 2.0])[labels]).mean())
    torch.testing.assert_close(task.probabilities(result)[:, 1], result.sigmoid()[:, 0])
    assert task.values(result).tolist() == (result[:, 0] > 0).long().tolist()


def test_class_weights_hold_for_a_batch_of_one_too() -> None:
    """torch divides a weighted mean by the batch's own weights, which makes the weight of a single image 1."""
    task = Task("multiclass", ("a", "b", "c"), (1.0, 2.0, 4.0))
    result, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    single = torch.stack([task.loss(result[n : n + 1], labels[n : n + 1]) for n in range(6)])
    torch.testing.assert_close(single.mean(), task.loss(result, labels))
    assert balanced([0, 0, 0, 1], 2) == pytest.approx((2 / 3, 2))
    assert sum(balanced([0, 0, 1, 2, 2], 3)[label] for label in (0, 0, 1, 2, 2)) == pytest.approx(5)


def test_ordered_classes_keep_their_order() -> None:
    task, above = Task("ordinal", ("0", "1", "2", "3")), Cumulative(4)
    nn.init.normal_(above.rises, std=3)
    scores = torch.linspace(-9, 9, 50).view(-1, 1)
    result = above(scores)
    assert (result[:, 1:] < result[:, :-1]).all()
    probabilities = task.probabilities(result)
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50))
    values = task.values(result)
    assert values.min() == 0 and values.max() == 3 and (values.diff() >= 0).all()
    likelihood = torch.stack([task.loss(result[:1], torch.tensor([label])) for label in range(4)])
    assert likelihood.argmin() == 0  # the lowest score: the lowest class


def test_a_regression_answers_in_the_labels_units() -> None:
    task = Task("regression", mean=100.0, std=20.0)
    result = torch.tensor([[0.5], [-1.0]])
    assert task.values(result).tolist() == [110.0, 80.0]
    assert task.loss(result, torch.tensor([110.0, 80.0])) == 0
    with pytest.raises(ValueError, match="no probabilities"):
        task.probabilities(result)


@pytest.mark.parametrize(
    "kind, classes, said",
    [
        ("binary", ("a", "b", "c"), "needs 2 classes, and there are 3: a, b, c"),
        ("ordinal", ("a",), "at least 2 classes"),
        ("segment", (), "there is no task 'segment'"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(kind: str, classes: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Task(kind, classes)


# ----------------------------------------------------------------------------------------------------- norms


def test_frozen_norms_stay_frozen_and_keep_their_names() -> None:
    net = trunk()
    net(torch.rand(4, 3, 20, 20))  # statistics that are not the initial ones
    plain = copy.deepcopy(net).eval()
    image = torch.rand(2, 3, 30, 22)
    frozen = convert_batchnorm(net, "frozen").train()
    assert frozen.training and not frozen.get_submodule("1").training
    assert frozen.state_dict().keys() == plain.state_dict().keys()
    before = frozen.get_buffer("1.running_mean").clone()
    torch.testing.assert_close(frozen(image), plain(image))
    assert torch.equal(frozen.get_buffer("1.running_mean"), before)
    for name, gradient in loss_of(frozen, image).items():
        torch.testing.assert_close(gradient, loss_of(plain, image)[name])
    result = check(frozen, image, tile=8)
    assert result.ok, str(result)


def test_group_norms_take_the_place_of_batch_norms() -> None:
    net = trunk()
    weight = nn.init.normal_(net.get_parameter("1.weight")).detach().clone()
    group = convert_batchnorm(net, "group").get_submodule("1")
    assert isinstance(group, nn.GroupNorm) and (group.num_groups, group.num_channels) == (2, 6)
    assert torch.equal(group.weight, weight)
    result = check(net.train(), torch.rand(2, 3, 30, 22), tile=8)
    assert result.ok, str(result)
    assert convert_batchnorm(trunk(), "batch").get_submodule("1").training


def test_what_cannot_be_converted_is_said() -> None:
    with pytest.raises(ValueError, match="'frozen' or 'group'"):
        convert_batchnorm(trunk(), "instance")
    with pytest.raises(ValueError, match="track_running_stats=False"):
        convert_batchnorm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "frozen")
    with pytest.raises(ValueError, match="itself a batch norm"):
        convert_batchnorm(nn.BatchNorm2d(3), "group")
