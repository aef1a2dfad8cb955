import pytest
import torch
from torch import nn

import model


@pytest.mark.parametrize("name", model.NETWORKS)
def test_every_network_is_small_and_gives_logits(name):
    network = model.build(name).eval()
    assert model.count_parameters(network) < 200_000
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert model.build(name, num_classes=7).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.multiply_adds(network) > 0 and model.receptive_field(network) > 1


@pytest.mark.parametrize("name", model.STUDY)
def test_networks_of_the_study_are_of_one_size(name):
    assert 190_000 <= model.count_parameters(model.build(name)) < 200_000


@pytest.mark.parametrize(
    "name, sides",
    [("dense", [16, 16, 8, 8, 4, 4]), ("dense-strided", [16, 16, 8, 8, 4, 4]), ("dense-unpooled", [16] * 6)],
)
def test_units_of_the_study_are_where_they_are_said_to_be(name, sides):
    seen = []
    network = model.build(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs.shape[2]))
    network(torch.randn(2, 3, 32, 32))
    assert seen == sides


def test_residual_units_add_their_input():
    units = [layer for layer in model.build("dense-residual") if isinstance(layer, model.Residual)]
    assert [unit[0].in_channels for unit in units] == [48, 48, 64, 72]


def test_a_gate_lets_through_what_its_sigmoid_says():
    gate = model.Gate(4, 6)
    images = torch.randn(2, 4, 3, 3)
    nn.init.zeros_(gate.gate.weight)
    assert torch.allclose(gate(images), gate.value(images) / 2)


def test_s8_is_the_table_it_began_with(capsys):
    units = [
        (16, 32, 432),
        (16, 32, 2304),
        (32, 28, 4608),
        (32, 28, 9216),
        (64, 28, 18432),
        (32, 28, 2048),
        (32, 28, 9216),
        (32, 28, 9216),
        (64, 24, 18432),
        (64, 24, 36864),
        (128, 24, 73728),
        (64, 24, 8192),
    ]
    expected = []
    for channels, side, parameters in units:
        shape = f"[-1, {channels}, {side}, {side}]"
        expected += [
            ("Conv2d", shape, parameters),
            ("ReLU", shape, 0),
            ("BatchNorm2d", shape, 2 * channels),
            ("Dropout", shape, 0),
        ]
    expected += [("AdaptiveAvgPool2d", "[-1, 64, 1, 1]", 0), ("Conv2d", "[-1, 10, 1, 1]", 640)]
    assert model.main(["s8"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "[-1," in line]
    assert len(lines) == 50
    for number, (line, (layer, shape, parameters)) in enumerate(zip(lines, expected), 1):
        assert line.split()[0] == f"{layer}-{number}"
        assert shape in line and line.split()[-1] == f"{parameters:,}"
    assert model.count_parameters(model.build("s8")) == 194_480


def test_a_block_of_accurate_overwrites_nothing_a_gradient_needs():
    block, images = model.PreActivation(4, 6, stride=2).double(), torch.randn(2, 4, 8, 8).double()
    assert torch.autograd.gradcheck(block, (images.requires_grad_(),))


def test_a_strided_depthwise_convolution_gives_the_values_of_torchs():
    layer, images = model.Depthwise(4, stride=2), torch.randn(2, 4, 8, 8)
    expected = nn.functional.conv2d(images, layer.weight, stride=2, padding=1, groups=4)
    assert torch.allclose(layer(images), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_global_pooling_is_the_mean_and_keeps_the_order_of_its_gradient(dtype):
    images = torch.randn(4, 8, 6, 5).to(dtype, memory_format=torch.channels_last).requires_grad_()
    means = model.AdaptiveAvgPool2d()(images)
    assert torch.allclose(means, images.mean((2, 3), keepdim=True), atol=0.01)
    (gradient,) = torch.autograd.grad(means.sum(), images)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(gradient, torch.full_like(gradient, 1 / 30))


def test_too_large_a_network_is_refused():
    with pytest.raises(
        model.NetworkError, match="network s8 has 513,840 parameters with 5000 classes; fewer than 200,000"
    ):
        model.build("s8", num_classes=5000)


def test_unknown_network_is_refused_with_the_list():
    with pytest.raises(model.NetworkError, match="fast, "):
        model.build("resnet50")


def test_receptive_field_of_known_layers():
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 4, 5),
    ]
    assert model.receptive_field(nn.Sequential(*layers)) == 3 + 1 + 4 * 2


def test_the_shortcut_of_a_block_does_not_widen_the_receptive_field():
    layers = [model.PreActivation(4, 8, stride=2), model.PreActivation(8, 8), nn.AdaptiveAvgPool2d(1)]
    assert model.receptive_field(nn.Sequential(*layers)) == 3 + 3 * 4


def test_multiply_adds_of_known_layers():
    assert model.multiply_adds(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))) == 30 * 30 * 3 * 4 * 9


def test_summary_changes_neither_network_nor_random_state(capsys):
    network = model.build("fast").train()
    weights, state = (
        {key: value.clone() for key, value in network.state_dict().items()},
        torch.get_rng_state(),
    )
    model.summary(network)
    assert torch.equal(torch.get_rng_state(), state) and network.training
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_command_line(capsys):
    assert model.main([]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(model.NETWORKS)
    assert model.main(["nosuch"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_whitened_outputs_are_uncorrelated_with_unit_variance():
    torch.manual_seed(0)
    # Neighbours are alike, as in photographs.
    smooth = nn.functional.avg_pool2d(torch.randn(500, 3, 34, 34), 3, stride=1) * 3
    network = model.build("fast")
    model.whiten(network, smooth)
    layer = network[0]
    with torch.no_grad():
        outputs = nn.functional.conv2d(smooth, layer.weight, stride=2).transpose(0, 1).flatten(1)
    count = layer.out_channels // 2
    assert torch.allclose(outputs[:count], -outputs[count:], atol=1e-4) and not layer.weight.requires_grad
    assert torch.allclose(outputs[:count].cov(), torch.eye(count), atol=0.15)


def test_whitening_looks_where_a_dilated_convolution_does():
    torch.manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(500, 3, 36, 36), 5, stride=1) * 5
    network = nn.Sequential(nn.Conv2d(3, 12, 3, dilation=3, bias=False))
    model.whiten(network, smooth)
    with torch.no_grad():
        outputs = network(smooth)[:, :6].transpose(0, 1).flatten(1)
    assert torch.allclose(outputs.cov(), torch.eye(6), atol=0.05)


@pytest.mark.parametrize("outputs", [1, 7, 16, 80])
def test_whitening_takes_any_number_of_filters(outputs):
    network = nn.Sequential(nn.Conv2d(3, outputs, 3))
    model.whiten(network, torch.randn(50, 3, 16, 16))
    assert network[0].weight.isfinite().all()


def test_views_are_weighted_as_they_should_be():
    images = torch.randn(4, 3, 8, 8)

    def corners(batch):
        """Logits that tell the views apart: the pixel in the middle and the one beside it."""
        return batch[:, 0, 3, 3:5]

    mirrored = images.flip(3)
    assert torch.equal(model.logits(corners, images), corners(images))
    two = (corners(images) + corners(mirrored)) / 2
    assert torch.allclose(model.logits(corners, images, 2), two)
    shifted = [
        (images[:, 0, 3 + step, 3 + step : 5 + step] + images[:, 0, 3 + step, 3 + step : 5 + step].flip(1))
        / 2
        for step in (1, -1)
    ]
    assert torch.allclose(model.logits(corners, images, 6), two / 2 + sum(shifted) / 4, atol=1e-6)


def test_six_views_of_a_plain_picture_are_all_the_same():
    network = model.build("fast").eval()
    images = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32).contiguous()
    with torch.no_grad():
        assert torch.allclose(model.logits(network, images, 6), network(images), atol=1e-4)


def test_weights_are_given_with_and_without_the_last_layer():
    trained, fresh = model.build("fast"), model.build("fast", num_classes=3)
    own = fresh[-1].weight.clone()
    model.load_weights(fresh, trained.state_dict(), last_layer=False)
    assert torch.equal(fresh[-1].weight, own) and torch.equal(fresh[2].weight, trained[2].weight)
    ends = [nn.Sequential(nn.Linear(2, 4), nn.Linear(4, classes)) for classes in (10, 3)]  # with biases
    model.load_weights(ends[1], ends[0].state_dict(), last_layer=False)
    assert torch.equal(ends[0][0].bias, ends[1][0].bias) and len(ends[1][1].bias) == 3
    other = model.build("fast")
    model.load_weights(other, trained.state_dict())
    assert torch.equal(other[-1].weight, trained[-1].weight)
    with pytest.raises(model.NetworkError, match="other layers"):
        model.load_weights(other, model.build("s8").state_dict())
