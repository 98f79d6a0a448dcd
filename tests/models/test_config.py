"""Configurations: what is read, what is kept, what is refused."""
import json

import pytest

from pyllm.errors import ConfigError
from pyllm.folders import build
from pyllm.models import FAMILIES, GPT2Config, LlamaConfig

GPT2_SMALL = {"model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "n_ctx": 1024, "n_inner": None,
              "bos_token_id": 50256}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_and_round_trip(family):
    kind = FAMILIES[family][0]
    config = kind.from_dict({"model_type": family, "torch_dtype": "float32", "vocab_size": 300})
    assert config.vocab_size == 300 and config.extra == {"torch_dtype": "float32"}
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict()["model_type"] == family


def test_keys_of_others_are_kept():
    config = GPT2Config.from_dict(GPT2_SMALL)
    assert config.extra == {"n_ctx": 1024, "bos_token_id": 50256} and config.attn_pdrop == 0.1 and config.n_inner is None
    assert config.to_dict()["n_ctx"] == 1024


def test_rope_parameters_of_newer_files():
    config = LlamaConfig.from_dict({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    assert config.rope_theta == 5e5 and config.rope_scaling is None
    with pytest.raises(ConfigError, match="not supported"):
        LlamaConfig.from_dict({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}})


def test_an_unknown_key_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"model.n_layers: not a key of gpt2. Did you mean 'n_layer'\?"):
        GPT2Config.from_sizes({"n_layers": 2})
    with pytest.raises(ConfigError, match=r"model_type='gpt3'; expected one of gpt2, llama. Did you mean 'gpt2'\?"):
        build({"model_type": "gpt3"})
    with pytest.raises(ConfigError, match="model_type=None"):
        build({})


WRONG = [
    (GPT2Config, dict(n_embd=10, n_head=3), "n_embd=10 is not a multiple of n_head=3"),
    (GPT2Config, dict(n_head=0), "n_head=0; expected a whole number of at least 1"),
    (GPT2Config, dict(vocab_size=-1), "vocab_size=-1"),
    (GPT2Config, dict(vocab_size=None), "vocab_size=None"),
    (GPT2Config, dict(n_layer=True), "n_layer=True"),
    (GPT2Config, dict(n_layer=2.0), "n_layer=2.0"),
    (GPT2Config, dict(n_layer="12"), "n_layer='12'"),
    (GPT2Config, dict(n_positions=2**31), "n_positions=2147483648"),
    (GPT2Config, dict(n_inner=0), "n_inner=0; expected a whole number of at least 1 or nothing"),
    (GPT2Config, dict(resid_pdrop=1.0), "resid_pdrop=1.0; expected a probability below 1"),
    (GPT2Config, dict(embd_pdrop=-0.1), "embd_pdrop=-0.1"),
    (GPT2Config, dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon=nan"),
    (GPT2Config, dict(initializer_range=float("inf")), "initializer_range=inf"),
    (GPT2Config, dict(bias=1), "bias=1; expected true or false"),
    (GPT2Config, dict(activation_function="gelo"), "activation_function='gelo'; expected one of"),
    (GPT2Config, dict(activation_function=None), "activation_function=None"),
    (LlamaConfig, dict(num_attention_heads=4, num_key_value_heads=3), "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
    (LlamaConfig, dict(num_key_value_heads=0), "num_key_value_heads=0"),
    (LlamaConfig, dict(hidden_size=12, num_attention_heads=4), "expected heads of a whole, even size"),
    (LlamaConfig, dict(hidden_size=10, num_attention_heads=4), "expected heads of a whole, even size"),
    (LlamaConfig, dict(head_dim=7), "expected heads of a whole, even size"),
    (LlamaConfig, dict(rope_theta=0.0), "rope_theta=0.0; expected a number above 0"),
    (LlamaConfig, dict(rope_scaling={"rope_type": "yarn"}), "scaled rotary positions are not supported"),
    (LlamaConfig, dict(rope_scaling="linear"), "rope_scaling='linear'; expected a table or nothing"),
    (LlamaConfig, dict(dropout=1.5), "dropout=1.5"),
]


@pytest.mark.parametrize("kind, values, text", WRONG, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_wrong_values(kind, values, text):
    for make in (lambda: kind(**values), lambda: kind.from_dict(values)):
        with pytest.raises(ConfigError) as error:
            make()
        assert text in str(error.value)


def test_all_wrong_values_come_at_once():
    with pytest.raises(ConfigError, match=r"vocab_size=0; .*, and n_layer='x'; "):
        GPT2Config(vocab_size=0, n_layer="x")
