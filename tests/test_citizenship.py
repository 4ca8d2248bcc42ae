"""A streamed module is an ordinary nn.Module: whatever one does with a module works, and means the same."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule, stream
from streamingcnn.check import compare, relative_errors, run_step
from tests.blocks import Residual

BOUND = 1e-10


def trunk() -> nn.Sequential:
    """A small residual trunk in float64, with normalisation in training mode."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Residual(4, 4),
        nn.Conv2d(4, 2, 1),
    ).double()


def pair(build: Callable[[], nn.Module] = trunk, tile: int = 16) -> tuple[nn.Module, StreamingModule]:
    module = build()
    return copy.deepcopy(module), StreamingModule(module, tile=tile)


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 45, 38)), dtype=torch.float64)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def assert_same_gradients(streamed: nn.Module, plain: nn.Module, bound: float = BOUND) -> None:
    errors = relative_errors(gradients(streamed), gradients(plain))
    assert max(errors.values()) <= bound, errors


def assert_same_step(plain: nn.Module, streamed: nn.Module, x: Tensor, bound: float = BOUND) -> None:
    worst = max(compare(plain, streamed, x), key=lambda row: row.error)
    assert worst.error <= bound, worst


# Gradients: every way to ask for them.


def test_backward_writes_grad() -> None:
    plain, net = pair()
    x = image()
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for module, leaf in zip((plain, net), inputs, strict=True):
        module(leaf).square().mean().backward()
    assert_same_gradients(net, plain)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-12, atol=1e-14)


def test_autograd_grad_of_some_parameters() -> None:
    plain, net = pair()
    x = image()
    found = [
        torch.autograd.grad(module(x).sum(), [module.get_parameter("0.weight"), module.get_parameter("5.bias")])
        for module in (plain, net)
    ]
    for a, b in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in net.parameters())


def test_saliency_where_every_parameter_is_frozen() -> None:
    plain, net = pair()
    plain.requires_grad_(False)
    net.requires_grad_(False)
    assert_same_step(plain, net, image())


def test_no_input_gradient_asked_for() -> None:
    plain, net = pair()
    x = image()
    found = [run_step(module, x, input_gradients=False) for module in (plain, net)]
    errors = relative_errors(found[1], found[0])
    assert max(errors.values()) <= BOUND, errors


def test_input_from_another_layer() -> None:
    """The image may itself be computed: the gradient goes on into what made it."""
    first = nn.Conv2d(3, 3, 1).double()
    plain, net = pair()
    before = copy.deepcopy(first)
    assert_same_step(nn.Sequential(before, plain), nn.Sequential(first, net), image())


def test_frozen_parameters_get_no_gradient() -> None:
    plain, net = pair()
    for module in (plain, net):
        module.get_parameter("0.weight").requires_grad_(False)
        module(image()).sum().backward()
    assert net.get_parameter("0.weight").grad is None


def test_unused_parameter_keeps_grad_none() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.used(x)
            return made

    net = StreamingModule(Unused().double(), tile=16)
    net(image()).sum().backward()
    assert net.get_parameter("unused.weight").grad is None
    assert net.get_parameter("used.weight").grad is not None


def test_gradients_accumulate() -> None:
    plain, net = pair()
    for x in (image(), image(1, 3, 31, 52), image()):
        for module in (plain, net):
            module(x).square().sum().backward()
    assert_same_gradients(net, plain)


def test_backward_twice_with_retain_graph() -> None:
    plain, net = pair()
    x = image()
    for module in (plain, net):
        y = module(x)
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
    assert_same_gradients(net, plain)


def test_hooks_on_the_module_its_output_and_its_parameters() -> None:
    plain, net = pair()
    x = image()
    seen: dict[int, list[str]] = {}
    for module in (plain, net):
        calls = seen.setdefault(id(module), [])
        module.register_forward_hook(lambda *_, calls=calls: calls.append("forward"))
        module.register_full_backward_hook(lambda *_, calls=calls: calls.append("backward"))
        module.get_parameter("5.weight").register_post_accumulate_grad_hook(
            lambda _, calls=calls: calls.append("accumulated")
        )
        y = module(x.clone().requires_grad_())
        y.register_hook(lambda g: 2 * g)
        y.sum().backward()
    assert sorted(seen[id(net)]) == sorted(seen[id(plain)]) == ["accumulated", "backward", "forward"]
    assert_same_gradients(net, plain)


def test_clipping_and_three_steps_of_an_optimiser() -> None:
    plain, net = pair()
    optimisers = [torch.optim.AdamW(m.parameters(), 1e-3) for m in (plain, net)]
    for _ in range(3):
        x = image()
        for module, optimiser in zip((plain, net), optimisers, strict=True):
            optimiser.zero_grad()
            module(x).square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimiser.step()
    errors = relative_errors(dict(net.state_dict()), dict(plain.state_dict()))
    assert max(errors.values()) <= 1e-8, errors  # Adam divides by gradients, also where they are noise


def test_grad_scaler() -> None:
    plain, net = pair()
    x = image()
    scales = []
    for module in (plain, net):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        scaler.scale(module(x).square().mean()).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        scaler.scale(module(x).sum() * float("inf")).backward()  # overflows: the step is left out
        scaler.step(optimiser)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [512.0, 512.0]
    errors = relative_errors(dict(net.named_parameters()), dict(plain.named_parameters()))
    assert max(errors.values()) <= BOUND, errors


# Names, copies and moves.


def test_state_dict_has_the_names_of_the_module() -> None:
    plain, net = pair()
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in net.named_buffers()] == [n for n, _ in plain.named_buffers()]
    assert net.get_submodule("4.conv1") is not None


def test_state_dict_loads_in_both_directions() -> None:
    plain, net = pair()
    other = trunk()
    net.load_state_dict(other.state_dict())
    plain.load_state_dict(net.state_dict())
    x = image()
    assert_same_step(plain, net, x)
    torch.testing.assert_close(net(x), other(x))


def test_parameters_are_the_modules_own() -> None:
    module = trunk()
    net = StreamingModule(module, tile=16)
    for (_, a), (_, b) in zip(net.named_parameters(), module.named_parameters(), strict=True):
        assert a is b


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_deepcopy_is_independent(used: bool) -> None:
    plain, net = pair()
    x = image()
    if used:
        run_step(net, x)
        run_step(plain, x)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert_same_step(plain, twin, x)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_pickle_and_torch_save(used: bool) -> None:
    plain, net = pair()
    x = image()
    if used:
        run_step(net, x)
        run_step(plain, x)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for twin in (pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        assert_same_step(copy.deepcopy(plain), twin, x)


def test_pickle_carries_no_cache() -> None:
    _, net = pair()
    fresh = len(pickle.dumps(net))
    run_step(net, image())
    assert len(pickle.dumps(net)) <= fresh + 64


def test_moves_to_another_dtype_and_back() -> None:
    plain, net = pair()
    x = image()
    net(x)
    plain(x)
    assert_same_step(plain.float(), net.float(), x.float(), bound=1e-4)
    assert net(x.float()).dtype == torch.float32
    plain, net = plain.double(), net.double()
    net.load_state_dict(plain.state_dict())
    assert_same_step(plain, net, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moves_to_the_gpu_and_back() -> None:
    plain, net = pair()
    x = image()
    for device in ("cuda", "cpu"):
        assert_same_step(plain.to(device), net.to(device), x.to(device))


def test_train_and_eval_reach_the_module() -> None:
    plain, net = pair()
    x = image()
    for mode in (False, True, False):
        assert net.train(mode) is net
        assert net.training is mode
        assert all(m.training is mode for m in net.modules())
        assert_same_step(plain.train(mode), net, x)


def test_mode_of_the_module_itself_counts() -> None:
    module = trunk()
    net = StreamingModule(module, tile=16)
    plain = copy.deepcopy(module).eval()
    module.eval()
    assert_same_step(plain, net, image())


# Modes of running.


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_no_grad_and_inference_mode(mode: Callable[[], torch.no_grad], train: bool) -> None:
    plain, net = pair()
    plain.train(train)
    net.train(train)
    x = image()
    with mode():
        expected, found = plain(x), net(x)
        assert not found.requires_grad
        assert found.is_inference() == expected.is_inference()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The plan without a gradient is not the plan of the next step, which needs one.
    assert_same_step(plain, net, x)


def test_channels_last() -> None:
    plain, net = pair(lambda: trunk().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    x = image().contiguous(memory_format=torch.channels_last)
    assert_same_step(plain, net, x)
    assert net(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.flip(3),
    ],
    ids=["transposed", "strided", "expanded", "flipped"],
)
def test_input_in_any_layout(view: Callable[[Tensor], Tensor]) -> None:
    plain, net = pair()
    assert_same_step(plain, net, view(image()))


def test_raw_pixels() -> None:
    """An image of bytes, made into numbers by the network itself, tile by tile."""

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = trunk()

        def forward(self, pixels: Tensor) -> Tensor:
            made: Tensor = self.body((pixels.double() / 255 - 0.5) / 0.25)
            return made

    plain, net = pair(Raw)
    pixels = torch.randint(0, 256, (2, 3, 45, 38), dtype=torch.uint8)
    assert_same_step(plain, net, pixels)


def test_other_sizes_one_after_the_other() -> None:
    plain, net = pair()
    for shape in ((1, 3, 45, 38), (2, 3, 20, 70), (3, 3, 45, 38), (1, 3, 45, 38)):
        assert_same_step(plain, net, image(*shape))


def test_autocast_is_restored_when_a_tile_is_computed_again() -> None:
    """257 is 256 in bfloat16, and the square's gradient shows which of the two backward has seen."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.conv(x).float() ** 2
            return made

    plain, net = copy.deepcopy(Square()), StreamingModule(Square(), tile=4)
    x = torch.full((1, 1, 16, 16), 257.0)
    for module in (plain, net):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.float32
        assert y.detach()[0, 0, 0, 0].item() == 256.0**2
        y.sum().backward()
    assert net.get_parameter("conv.weight").grad.item() == plain.conv.weight.grad.item()  # type: ignore


def test_autocast_bf16_of_a_trunk() -> None:
    plain, net = pair(lambda: trunk().float())
    x = torch.randn(2, 3, 45, 38)
    steps = []
    for module in (plain, net):
        with torch.autocast("cpu", torch.bfloat16):
            steps.append(run_step(module, x))
    assert {k: v.dtype for k, v in steps[1].items() if v is not None} == {
        k: v.dtype for k, v in steps[0].items() if v is not None
    }
    errors = relative_errors(steps[1], steps[0])
    # bfloat16 keeps 8 bits, and a sum over tiles rounds elsewhere than a sum over the image.
    assert max(errors.values()) < 6e-2, errors


def test_bits_are_the_same_in_every_run() -> None:
    _, net = pair()
    x = image()
    state = copy.deepcopy(net.state_dict())
    steps = []
    for _ in range(2):
        net.load_state_dict(state)
        steps.append(run_step(net, x))
    for key, tensor in steps[0].items():
        assert tensor is None or torch.equal(tensor, steps[1][key]), key  # type: ignore[arg-type]


# Dynamo itself looks at .grad of every tensor it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_head() -> None:
    class Whole(nn.Module):
        def __init__(self, body: nn.Module, head: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.body, self.head = body, head

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.head(self.body(x).mean((2, 3)))
            return made

    plain, net = pair()
    head = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    whole = Whole(plain, copy.deepcopy(head))
    streamed = Whole(net, torch.compile(head, backend="aot_eager"))
    x = image()
    for module in (whole, streamed):
        module(x).sum().backward()
    assert_same_gradients(net, plain)


# A named submodule.


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"backbone": trunk()})
        self.head = nn.Linear(2, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.net["backbone"](x).amax((2, 3)))
        return made


def test_stream_swaps_a_submodule_in_place() -> None:
    model = Model()
    plain = copy.deepcopy(model)
    assert stream(model, "net.backbone", tile=16) is model
    assert isinstance(model.net["backbone"], StreamingModule)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    assert_same_step(plain, model, image())


def test_stream_names_what_there_is() -> None:
    model = Model()
    with pytest.raises((ValueError, AttributeError), match=r"backbne(.|\n)*backbone"):
        stream(model, "net.backbne", tile=16)
    assert_same_step(copy.deepcopy(model), model, image())
