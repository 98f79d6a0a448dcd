"""Configurations: what is read, what is kept, what is refused."""
import json

import pytest

from pyllm.errors import ConfigError
from pyllm.folders import build
from pyllm.models import FAMILIES, Gemma3Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from pyllm.models.base import EVERYWHERE

GPT2_SMALL = {"model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "n_ctx": 1024, "n_inner": None,
              "bos_token_id": 50256}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_and_round_trip(family):
    kind = FAMILIES[family][0]
    config = kind.from_dict({"model_type": family, "torch_dtype": "float32", "vocab_size": 300, "architectures": ["Whatever"]})
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
    scaling = {"rope_type": "linear", "factor": 2.0}
    assert LlamaConfig.from_dict({"rope_parameters": {"rope_theta": 5e5, **scaling}}).rope_scaling == scaling
    assert LlamaConfig.from_dict({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}).rope_scaling == scaling
    nested = {"full_attention": {"rope_theta": 9e5, **scaling}, "sliding_attention": {"rope_theta": 77.0, "rope_type": "default"}}
    config = Gemma3Config.from_dict({"rope_parameters": nested})
    assert (config.rope_theta, config.rope_local_base_freq, config.rope_scaling) == (9e5, 77.0, scaling)
    assert config.rope(5) == (9e5, scaling) and config.rope(0) == (77.0, None)
    old = {"rope_theta": 9e5, "rope_local_base_freq": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert Gemma3Config.from_dict(old) == config
    with pytest.raises(ConfigError, match="the same for every layer"):
        LlamaConfig.from_dict({"rope_parameters": nested})
    nested["full_attention"] = nested["sliding_attention"]
    assert LlamaConfig.from_dict({"rope_parameters": nested}).rope_theta == 77.0


def test_windows_of_the_layers():
    """Which layers see how many keys, by the rules of each family's library."""
    windows = lambda config: [config.window(i) for i in range(config.num_hidden_layers)]  # noqa: E731
    assert windows(MistralConfig(num_hidden_layers=2)) == [4096, 4096]
    assert windows(MistralConfig(num_hidden_layers=2, sliding_window=None)) == [0, 0]
    qwen = dict(num_hidden_layers=3, sliding_window=7, max_window_layers=1)
    for kind in (Qwen2Config, Qwen3Config):
        assert windows(kind(**qwen)) == [0, 0, 0]
        assert windows(kind(**qwen, use_sliding_window=True)) == [0, 7, 7]
        kinds = ["sliding_attention", "full_attention", "full_attention"]
        assert windows(kind(**qwen, use_sliding_window=True, layer_types=kinds)) == [7, 0, 0]
    assert windows(Gemma3Config(num_hidden_layers=7, sliding_window=5)) == [5] * 5 + [0, 5]
    assert windows(Gemma3Config(num_hidden_layers=2, sliding_window_pattern=1)) == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_another_variant_computes_otherwise_is_refused(family):
    kind = FAMILIES[family][0]
    assert kind.FIXED
    for key, right in {**kind.FIXED, **EVERYWHERE}.items():
        assert kind.from_dict({key: right}).extra == {key: right}
        with pytest.raises(ConfigError, match=f"{key}='other'; only {right!r} is supported"):
            kind.from_dict({key: "other"})


def test_an_unknown_key_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"model.n_layers: not a key of gpt2. Did you mean 'n_layer'\?"):
        GPT2Config.from_sizes({"n_layers": 2})
    with pytest.raises(ConfigError, match=r"model_type='gpt3'; expected one of gpt2, llama, .*\. Did you mean 'gpt2'\?"):
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
    (GPT2Config, dict(position="absolute"), "position='absolute'; expected one of learned, sinusoidal, rope, alibi, t5"),
    (GPT2Config, dict(position="rope", n_embd=15, n_head=3), "rope wants heads of an even size"),
    (GPT2Config, dict(activation_function="gelo"), "activation_function='gelo'; expected one of"),
    (GPT2Config, dict(activation_function=None), "activation_function=None"),
    (LlamaConfig, dict(num_attention_heads=4, num_key_value_heads=3), "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
    (LlamaConfig, dict(num_key_value_heads=0), "num_key_value_heads=0"),
    (LlamaConfig, dict(hidden_size=12, num_attention_heads=4), "expected heads of a whole, even size"),
    (LlamaConfig, dict(hidden_size=10, num_attention_heads=4), "expected heads of a whole, even size"),
    (LlamaConfig, dict(head_dim=7), "expected heads of a whole, even size"),
    (LlamaConfig, dict(rope_theta=0.0), "rope_theta=0.0; expected a number above 0"),
    (LlamaConfig, dict(rope_scaling={"rope_type": "yarn"}), "yarn with factor=None; expected a number above 0"),
    (LlamaConfig, dict(rope_scaling={"type": "longest"}), "rope_type='longest'; expected one of default, linear, dynamic, yarn, llama3"),
    (LlamaConfig, dict(rope_scaling={"rope_type": "linear", "factor": 0}), "factor=0"),
    (LlamaConfig, dict(rope_scaling={"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}), "not below"),
    (Qwen2Config, dict(layer_types=["full_attention"]), "expected 32 of full_attention, sliding_attention"),
    (Gemma3Config, dict(num_hidden_layers=1, layer_types=[3]), "layer_types=[3]"),
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
