"""Module: paths, get, set, state, load, initialize. Layers: shapes and what they hold."""
import numpy as np
import pytest

from pyllm.autograd import Rng, Tensor, ops
from pyllm.nn import Embedding, LayerNorm, Linear, Module, RMSNorm, normal, parameter


class Pair(Module):
    def __init__(self):
        self.first, self.second = Linear(2, 3), Linear(3, 2, bias=False)


class Net(Module):
    def __init__(self):
        self.embed = Embedding(7, 2)
        self.blocks = [Pair(), Pair()]
        self.norm = LayerNorm(2)
        self.head = Linear(2, 7, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.size, self.names = 7, ["not", "modules"]


PATHS = ["embed.weight", *[f"blocks.{i}.{name}" for i in (0, 1) for name in ("first.weight", "first.bias", "second.weight")],
         "norm.weight", "norm.bias"]


def test_paths_are_in_order_of_definition_and_a_tied_weight_comes_once():
    net = Net()
    assert [path for path, _ in net.named_parameters()] == PATHS
    assert [path for path, _ in net.named_modules()] == [
        "", "embed", "blocks.0", "blocks.0.first", "blocks.0.second", "blocks.1", "blocks.1.first", "blocks.1.second", "norm", "head"]
    assert net.num_parameters() == 14 + 2 * (6 + 3 + 6) + 4 == sum(p.size for p in net.parameters())
    assert net.embed.weight is net.get("head.weight")


def test_get_and_set():
    net = Net()
    assert net.get("") is net and net.get("blocks.1.first") is net.blocks[1].first and net.get("norm.bias") is net.norm.bias
    new = Linear(2, 3)
    net.set("blocks.1.first", new)
    assert net.blocks[1].first is new
    pair = Pair()
    net.set("blocks.0", pair)
    assert net.blocks[0] is pair
    weight = parameter(2)
    net.set("norm.weight", weight)
    assert net.norm.weight is weight


@pytest.mark.parametrize("path, text", [("block", "the model has embed, blocks, norm, head"), ("blocks.2", "blocks has 0, 1"),
                                        ("blocks.x", "blocks has 0, 1"), ("norm.gain", "norm has weight, bias, eps"),
                                        ("norm.weight.", "norm.weight has nothing below"), ("..", "no '..'"),
                                        ("embed.reset", "embed has weight, std"), ("blocks.-1", "blocks has 0, 1")])
def test_get_of_what_is_not_there(path, text):
    net = Net()
    with pytest.raises(KeyError, match="no ") as error:
        net.get(path)
    assert text in str(error.value)
    with pytest.raises(KeyError):
        net.set(path, Linear(1, 1))


def test_state_and_load():
    one, two = Net().initialize(1), Net().initialize(2)
    two.load(one.state())
    assert list(one.state()) == PATHS
    for path, array in one.state().items():
        assert np.array_equal(array, two.state()[path])
        assert not np.may_share_memory(array, two.state()[path])
    assert one.state()["embed.weight"] is one.embed.weight.data
    assert two.head.weight is two.embed.weight


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_load_converts_and_densifies(dtype):
    layer = Linear(3, 2)
    w = np.arange(6).reshape(3, 2).T.astype(dtype)
    layer.load({"weight": w, "bias": np.zeros(2, dtype)})
    assert layer.weight.data.dtype == np.float32 and layer.weight.data.flags.c_contiguous and np.array_equal(layer.weight.data, w)


def test_load_names_every_mismatch_and_changes_nothing():
    net = Net().initialize(0)
    before = {path: a.copy() for path, a in net.state().items()}
    state = {path: a * 0 for path, a in before.items()}
    del state["norm.bias"], state["blocks.1.second.weight"]
    state["blocks.0.first.weight"] = np.zeros((2, 3))
    state["extra"] = np.zeros(4)
    with pytest.raises(ValueError) as error:
        net.load(state)
    assert str(error.value).splitlines() == [
        "Net.load: 4 mismatches:", "  missing: blocks.1.second.weight (2, 3)", "  missing: norm.bias (2,)", "  unexpected: extra (4,)",
        "  blocks.0.first.weight: shape (2, 3), expected (3, 2)"]
    assert all(np.array_equal(a, net.state()[path]) for path, a in before.items())


def test_values_depend_on_the_seed_and_the_path_alone():
    one, again, other = Net().initialize(5), Net().initialize(5), Net().initialize(6)
    for path, a in one.state().items():
        assert np.array_equal(a, again.state()[path])
        if "norm" not in path and "bias" not in path:
            assert not np.array_equal(a, other.state()[path])
    assert not np.array_equal(one.blocks[0].first.weight.data, one.blocks[1].first.weight.data)

    class Larger(Net):
        def __init__(self):
            super().__init__()
            self.blocks.append(Pair())
            self.late = Linear(4, 4)

    larger = Larger().initialize(5)
    assert all(np.array_equal(a, larger.state()[path]) for path, a in one.state().items())


def test_initial_values():
    layer = Linear(300, 200, std=0.5)
    layer.initialize(0)
    assert abs(layer.weight.data.std() - 0.5) < 0.01 and abs(layer.weight.data.mean()) < 0.01 and not layer.bias.data.any()
    for norm in (LayerNorm(4), RMSNorm(4)):
        norm.initialize(0)
        assert (norm.weight.data == 1).all()
    tensor = parameter(3)
    normal(tensor, Rng(1), 2.0)
    assert tensor.data.dtype == np.float32 and tensor.requires_grad


def test_layers_compute_what_they_say():
    draw = np.random.default_rng(0)
    x = Tensor(draw.standard_normal((2, 3, 4)).astype(np.float32))
    layer = Linear(4, 4).initialize(3)
    layer.bias.data[:] = draw.standard_normal(4)
    expected = x.data @ layer.weight.data.T + layer.bias.data
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer(x, "relu", x).data, np.maximum(expected, 0) + x.data, rtol=1e-5, atol=1e-6)
    table = Embedding(5, 4).initialize(0)
    assert np.array_equal(table(np.array([[4, 0]], np.int32)).data, table.weight.data[[[4, 0]]])
    centred = x.data - x.data.mean(-1, keepdims=True)
    for norm, y in ((LayerNorm(4, 1e-3), centred), (RMSNorm(4, 1e-3), x.data)):
        np.testing.assert_allclose(norm.initialize(0)(x).data, y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3), atol=1e-5)


def test_a_frozen_parameter_is_a_flag():
    net = Net().initialize(0)
    net.embed.weight.requires_grad = False
    x = net.blocks[0].second(net.blocks[0].first(net.embed(np.array([[1, 2]], np.int32))))
    ops.sum(x * x).backward()
    assert net.embed.weight.grad is None and net.blocks[0].first.weight.grad is not None
