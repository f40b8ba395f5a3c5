"""Tracing: the program computes what the network computes, leaves it alone, and refuses what cannot be explained."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tlkd.errors import BadInput
from tlkd.program import Constants, evaluating, operator_name, run, trace

SHAPE = (3, 8, 8)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """Convolutions with batch norm, one that cannot be folded, in-place additions, a shared module, a token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(x))
        y += x
        x = self.norms[2](torch.cat([self.relu(y)[:, :2], x[:, :2]], 1))
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return self.fc(self.dropout(tokens).mean(1))


@torch.no_grad()
def outputs(program, model, images, dtype=None):
    constants = Constants.of(program, model, dtype)
    return run(program, constants, constants.cast(images), frozenset())[program.output]


def state_of(model):
    return {name: (each.clone(), each.requires_grad, each.grad)
            for name, each in model.state_dict(keep_vars=True).items()}


def test_a_program_gives_the_networks_outputs_for_every_batch_and_layout():
    model = Small().eval()
    program = trace(model, SHAPE)
    for batch in (1, 2, 7):
        images = draw(batch, batch, *SHAPE)
        with torch.no_grad():
            expected = model(images)
        torch.testing.assert_close(outputs(program, model, images), expected, rtol=1e-5, atol=1e-5)
        last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(outputs(program, model, last), expected, rtol=1e-5, atol=1e-5)


def test_batch_norms_are_folded_where_a_convolution_alone_precedes_them():
    names = [operator_name(node) for node in trace(Small(), SHAPE).graph.nodes]
    assert names.count("_native_batch_norm_legit_no_training") == 1
    assert names.count("folded_weight") == names.count("conv2d") == 2


def test_a_convolution_that_others_read_keeps_its_batch_norm():
    class Both(Small):
        def forward(self, x):
            y = self.first(x)
            return self.fc((self.norms[0](y) + y).mean((2, 3)))

    model = Both().eval()
    program = trace(model, SHAPE)
    assert "folded_weight" not in [operator_name(node) for node in program.graph.nodes]
    torch.testing.assert_close(outputs(program, model, draw(1, 2, *SHAPE)), model(draw(1, 2, *SHAPE)))


def test_a_batch_norms_scale_may_be_computed_after_the_convolution():
    class Late(Small):
        def forward(self, x):
            y = self.first(x)
            norm = self.norms[0]
            return self.fc(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight.abs() + 0.1, norm.bias)
                           .mean((2, 3)))

    model = Late().eval()
    program = trace(model, SHAPE)
    assert "folded_weight" in [operator_name(node) for node in program.graph.nodes]
    program.graph.lint()  # what is read stands before what reads it
    torch.testing.assert_close(outputs(program, model, draw(1, 2, *SHAPE)), model(draw(1, 2, *SHAPE)))


def test_one_program_serves_other_weights_and_precisions():
    program = trace(Small(), SHAPE)
    other = Small()
    for each in other.parameters():
        nn.init.normal_(each, std=0.5)
    other.eval()
    images = draw(1, 3, *SHAPE)
    torch.testing.assert_close(outputs(program, other, images), other(images), rtol=1e-5, atol=1e-5)
    expected = copy.deepcopy(other).double()(images.double())
    torch.testing.assert_close(outputs(program, other, images, torch.float64), expected, rtol=1e-10, atol=1e-10)
    found = outputs(program, copy.deepcopy(other).double(), images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    exact = trace(other.double(), SHAPE)
    assert outputs(exact, other.float(), images).dtype == torch.float32


def test_a_conversion_inside_a_network_keeps_the_precision_that_is_computed_in():
    class Converts(Small):
        def forward(self, x):
            return self.fc(x.flatten(2)[:, :, :4].mean(1).float().softmax(1, dtype=torch.float32) + torch.ones(4))

    model = Converts().eval()
    found = outputs(trace(model, SHAPE), model, draw(1, 2, *SHAPE), torch.float64)
    exact = draw(1, 2, *SHAPE).double().flatten(2)[:, :, :4].mean(1).softmax(1) + 1
    exact = exact @ model.fc.weight.double().T + model.fc.bias.double()
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_network_as_it_was(training):
    model = Small().train(training)
    model.norms[1].train(not training)
    model.fc.weight.requires_grad_(False)
    before, modes = state_of(model), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    trace(model, SHAPE)
    after = state_of(model)
    assert [module.training for module in model.modules()] == modes
    for name, (value, learns, gradient) in before.items():
        assert torch.equal(after[name][0], value) and after[name][1:] == (learns, gradient), name
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                   for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def test_evaluating_puts_modes_back_after_an_error():
    model = Small().train()
    model.norms[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes


class Bad(nn.Module):
    """A network with a fault; its features are `[B, 4]`."""

    def __init__(self, function):
        super().__init__()
        self.function, self.fc = function, nn.Linear(192, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        return self.function(self, x, self.fc(x.flatten(1)))


def count(model, x, y):
    model.calls.add_(1)
    return y + model.calls


REFUSED = {
    "control_flow": (lambda m, x, y: y if y.sum() > 0 else 2 * y, "cannot be traced"),
    "control_flow_by_number": (lambda m, x, y: y * int(y.sum().item() > 0), "cannot be traced"),
    "batch_fixed": (lambda m, x, y: y.reshape(2, 4) * 2, "cannot be traced"),
    "wrong_size": (lambda m, x, y: m.fc(x[:, :2].flatten(1)), "cannot be traced"),
    "two_outputs": (lambda m, x, y: (y, 2 * y), "outputs"),
    "outputs_by_name": (lambda m, x, y: {"out": y, "aux": y + 1}, "outputs"),
    "maps": (lambda m, x, y: x.mean(1), "outputs"),
    "one_number": (lambda m, x, y: y.sum(1), "outputs"),
    "no_batch": (lambda m, x, y: y.sum(0, keepdim=True), "outputs"),
    "sideways": (lambda m, x, y: y.T, "outputs"),
    "every_image_beside_every_other": (lambda m, x, y: y @ y.T, "outputs"),
    "constant": (lambda m, x, y: torch.ones(x.shape[0], 3), "do not depend"),
    "buffers": (count, "buffers"),
    "dropout_always_on": (lambda m, x, y: F.dropout(y, 0.5, training=True), "random"),
    "noise": (lambda m, x, y: y + torch.randn(y.shape), "random"),
    "noise_like": (lambda m, x, y: y + torch.rand_like(y), "random"),
    "batch_statistics": (lambda m, x, y: F.batch_norm(y, None, None, training=True), "mixes"),
    "mean_of_batch": (lambda m, x, y: y - y.mean(0), "mixes"),
    "flipped": (lambda m, x, y: y.flip(0), "mixes"),
    "rolled": (lambda m, x, y: y + y.roll(1, 0), "mixes"),
    "first_of_batch": (lambda m, x, y: y + y[:1], "mixes"),
    "first_for_all": (lambda m, x, y: y[:1].expand(x.shape[0], -1), "mixes"),
    "attends_to_others": (lambda m, x, y: (y @ y.T).softmax(1) @ y, "mixes"),
    "softmax_over_batch": (lambda m, x, y: y.softmax(0), "mixes"),
    "size_of_batch": (lambda m, x, y: y / x.shape[0], "size of the batch"),
    "size_of_batch_in_a_tensor": (lambda m, x, y: y * torch.full((4,), x.shape[0]), "size of the batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_explained_is_refused_in_one_line(name, capfd):
    function, said = REFUSED[name]
    with pytest.raises(BadInput) as caught:
        trace(Bad(function), SHAPE, "net")
    text = str(caught.value)
    assert text.startswith("net: ") and said in text and "\n" not in text, text


def test_a_network_may_write_into_its_input_and_mix_and_unmix_nothing():
    def inside(model, x, y):
        x.mul_(2)
        with torch.no_grad():
            return model.fc(x.flatten(1)).detach() + y

    model = Bad(inside).eval()
    program = trace(model, SHAPE)
    images = draw(1, 3, *SHAPE)
    kept = images.clone()
    found = outputs(program, model, images)
    assert torch.equal(images, kept)
    torch.testing.assert_close(found, model(images))


def test_nan_weights_are_no_mixing():
    """Whose outputs are nan anyway is traced; what is wrong with it is found when it is explained."""
    model = Bad(lambda m, x, y: y)
    nn.init.constant_(model.fc.bias, torch.nan)
    assert trace(model, SHAPE).output is not None


def test_a_program_of_another_network_is_refused():
    with pytest.raises(BadInput, match="Small: was traced from another network"):
        Constants.of(trace(Small(), SHAPE), Bad(lambda m, x, y: y))


def test_constants_are_computed_for_the_size_of_the_batch():
    model = Bad(lambda m, x, y: torch.cat([y, m.calls.expand(x.shape[0], -1) + 1], 1)).eval()
    program, images = trace(model, SHAPE), draw(1, 5, *SHAPE)
    constants = Constants.of(program, model)
    for batch in (5, 2, 5, 1):
        found = run(program, constants, images[:batch], frozenset())[program.output]
        torch.testing.assert_close(found, model(images[:batch]))
    with pytest.raises(ValueError, match="is no constant"):
        constants.value(program.output, 2)
