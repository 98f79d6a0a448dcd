"""Adapters in use: frozen and packed bases, several at once, decoding, targets, bad input."""
import json

import numpy as np
import pytest

import pyllm
from pyllm import kernels as K
from pyllm import objectives, peft
from pyllm.autograd import no_grad
from pyllm.errors import ConfigError, FormatError
from pyllm.nn import Cache
from tests.peft.tiny import batch_of, learn, logits, loss, make

WIDE = {"gpt2": dict(n_embd=64, n_head=2), "llama": dict(hidden_size=64, intermediate_size=96, num_attention_heads=2)}


def shaken(model, name=None, seed=7):
    draw = np.random.default_rng(seed)
    for adapter in peft.adapters(model, name):
        for p in adapter.own().values():
            p.data = (p.data + 0.3 * draw.standard_normal(p.shape)).astype(np.float32)
    return model


def agrees_with_the_full_forward(model, rows=2, length=9):
    """A prompt, then token by token, over a cache."""
    tokens, cache, parts = batch_of("gpt2", rows, length, seed=5).tokens, Cache(rows, capacity=1), []
    with no_grad():
        for part in (tokens[:, :4], *[tokens[:, i : i + 1] for i in range(4, length)]):
            parts.append(model(part, cache=cache).data)
            cache.advance(np.full(rows, part.shape[1]))
        full = model(tokens).data
    np.testing.assert_allclose(np.concatenate(parts, 1), full, atol=2e-5 * np.abs(full).max())


# ---- what is frozen costs nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_gradient_of_a_frozen_weight_is_computed(family, monkeypatch):
    """A product of the size of a weight's gradient is never made."""
    model, batch = peft.inject(make(family), peft.LoRA(rank=2)), batch_of(family)
    own = {p.shape for a in peft.adapters(model) for p in a.own().values()}
    made, matmul = [], K.matmul

    def watched(a, b, *args, **options):
        if options.get("ta"):
            made.append((a.shape[1], b.shape[1]))
        return matmul(a, b, *args, **options)

    monkeypatch.setattr(K, "matmul", watched)
    objectives.clm(model, batch).total.backward()
    assert made and set(made) <= own
    assert not [p for p in model.parameters() if p.grad is not None and p.shape not in own]


@pytest.mark.parametrize("format", ["bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("family", list(WIDE))
def test_a_packed_base_is_trained_upon(family, format, tmp_path):
    """QLoRA: the packed bytes stay, gradients reach the adapter, its folder is LoRA's, merging makes floats."""
    model, batch = pyllm.quantize(make(family, **WIDE[family]), format), batch_of(family)
    before, packed = logits(model, batch).data, {n: p.dequantize() for n, p in model.named_packed()}
    peft.inject(model, peft.LoRA(rank=4), "all-linear")
    assert np.array_equal(logits(model, batch).data, before)
    losses = learn(model, batch)
    assert losses[-1] < losses[0]
    peft.save(model, tmp_path / "a")
    other = peft.load(pyllm.quantize(make(family, **WIDE[family]), format), tmp_path / "a")
    assert np.array_equal(logits(other, batch).data, logits(model, batch).data)
    report = peft.merge(model, verify=batch, threshold=0.2)
    assert 0 < report.max_diff
    peft.unmerge(model)
    peft.remove(model, "default")
    assert all(np.array_equal(p.dequantize(), packed[n]) for n, p in model.named_packed())


def test_a_merge_that_changes_the_model_is_refused_and_undone():
    model, batch = pyllm.quantize(make("llama", **WIDE["llama"]), "q4_0"), batch_of("llama")
    shaken(peft.inject(model, peft.LoRA(rank=4), "all-linear"))
    before = logits(model, batch).data
    with pytest.raises(ValueError, match="differ by up to"):
        peft.merge(model, verify=batch, threshold=1e-7)
    assert model.merged is None and np.array_equal(logits(model, batch).data, before)


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_decoding_over_a_cache_is_the_full_forward(family):
    model = shaken(peft.inject(make(family), peft.LoRA(rank=2), "all-linear"))
    agrees_with_the_full_forward(model)
    peft.merge(model)
    agrees_with_the_full_forward(model)


@pytest.mark.parametrize("kernels", [k for k in K.available() if k != "reference"][-1:])
def test_a_disabled_adapter_decodes_in_one_call_again(kernels, monkeypatch):
    """The one-call step over all blocks takes a model whose adapters do nothing, and leaves one whose adapters do to Python."""
    from pyllm.nn.step import _Step

    model = shaken(peft.inject(make("llama"), peft.LoRA(rank=2)))
    assert _Step(model.model.layers).blocks is None
    with peft.disabled(model):
        assert _Step(model.model.layers).blocks is not None
    peft.merge(model)
    assert _Step(model.model.layers).blocks is not None


# ---- tied embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_a_tied_head_and_its_embedding_are_adapted_apart_and_survive_a_merge(target, tmp_path):
    """peft#2777: the merged model's folder has both, and config.json says that they are not tied."""
    model, batch = make("gpt2"), batch_of("gpt2")
    shaken(peft.inject(model, peft.LoRA(rank=2), ["c_attn", target]))
    expected = logits(model, batch).data
    assert peft.merge(model, verify=batch).untied
    pyllm.save(model, None, tmp_path / "merged")
    reopened, _ = pyllm.load(tmp_path / "merged")
    assert not reopened.config.tie_word_embeddings
    np.testing.assert_allclose(logits(reopened, batch).data, expected, atol=1e-4)
    peft.unmerge(model)
    assert np.array_equal(logits(model, batch).data, expected) and model.config.tie_word_embeddings
    peft.remove(model, "default")
    assert model.lm_head is None and "lm_head.weight" not in model.state()


def test_an_untied_t5_keeps_the_scale_of_its_output(tmp_path):
    model, batch = make("t5"), batch_of("t5")
    shaken(peft.inject(model, peft.LoRA(rank=2), ["q", "shared"]))
    expected = logits(model, batch).data
    peft.merge(model, verify=batch)
    pyllm.save(model, None, tmp_path / "merged")
    np.testing.assert_allclose(logits(pyllm.load(tmp_path / "merged")[0], batch).data, expected, atol=1e-4 * np.abs(expected).max())


# ---- learning rates --------------------------------------------------------------------------------------------------


def test_lora_plus_gives_b_its_own_rate():
    from pyllm.training import AdamW

    model, batch = peft.inject(make("gpt2"), peft.LoRA(rank=2, lr_ratio=16.0)), batch_of("gpt2")
    optimizer = AdamW(model, weight_decay=0.0, rates=peft.rates(model))
    shaken(model)
    before = {n: p.data.copy() for n, p in optimizer.parameters.items()}
    loss(model, batch).backward()
    optimizer.step(1e-3)
    moved = {n: np.abs(p.data - before[n]).max() for n, p in optimizer.parameters.items()}
    assert all(m == pytest.approx(1.6e-2 if n.endswith("lora_B") else 1e-3, rel=0.05) for n, m in moved.items())


# ---- bad input -------------------------------------------------------------------------------------------------------


def unchanged(model, call, error, *words):
    """call raises error with these words and leaves the model as it was."""
    names, state = peft.names(model), {n: p.data.copy() for n, p in model.named_parameters()}
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert peft.names(model) == names
    assert {n: p.shape for n, p in model.named_parameters()} == {n: a.shape for n, a in state.items()}


def test_targets_that_name_nothing_list_what_there_is():
    model = make("llama")
    unchanged(model, lambda: peft.inject(model, peft.LoRA(), ["q_prj"]), ConfigError, "q_prj", "self_attn.q_proj", "mlp.down_proj")
    unchanged(model, lambda: peft.inject(model, peft.LoRA(), ["q_proj", "wrong"]), ConfigError, "wrong")
    unchanged(model, lambda: peft.inject(model, peft.LoRA(), r".*\.nothing"), ConfigError, "nothing")
    unchanged(model, lambda: peft.inject(model, peft.BitFit()), ConfigError, "no bias", "add=True")


def test_targets_by_expression():
    model = peft.inject(make("llama"), peft.LoRA(rank=1), r"model\.layers\.1\..*(q|v)_proj")
    assert [a.site for a in peft.adapters(model)] == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_names_with_path_parts_are_refused(name):
    model = make("gpt2")
    unchanged(model, lambda: peft.inject(model, peft.LoRA(), name=name), ConfigError, "no path")


def test_settings_that_do_not_fit():
    model = make("gpt2")
    unchanged(model, lambda: peft.inject(model, peft.LoRA(rank=13)), ValueError, "rank 13", "(36, 12)", "h.0.attn", "h.1.attn")
    for wrong in (dict(rank=0), dict(dropout=1.0), dict(init="best"), dict(lr_ratio=0.0), dict(rank_pattern={"q": 0})):
        with pytest.raises(ConfigError, match="LoRA"):
            peft.LoRA(**wrong)


def test_merging_twice_and_training_what_is_merged():
    from pyllm.training import AdamW

    model = shaken(peft.inject(make("gpt2"), peft.LoRA(rank=2)))
    peft.merge(model)
    for call, words in ((lambda: peft.merge(model), "merged already"), (lambda: peft.inject(model, peft.LoRA(), name="b"), "merged"),
                        (lambda: peft.activate(model, "default"), "merged"), (lambda: peft.remove(model, "default"), "merged"),
                        (lambda: AdamW(model), "no parameter with requires_grad")):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="merged"), peft.disabled(model):
        pass
    peft.unmerge(model)
    with pytest.raises(ValueError, match="nothing is merged"):
        peft.unmerge(model)


def test_a_model_folder_holds_no_adapters(tmp_path):
    model = peft.inject(make("gpt2"), peft.LoRA(rank=2))
    with pytest.raises(ValueError, match="pyllm.peft.merge"):
        pyllm.save(model, None, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_files_that_do_not_fit(tmp_path):
    """Another base, missing and unused tensors, unknown kinds: every mismatch named, nothing half-applied."""
    from pyllm.io.safetensors import read, write

    peft.save(peft.inject(make("gpt2"), peft.LoRA(rank=2)), tmp_path / "a")
    for changes, words in ((dict(n_embd=24), ("shape (2, 12), expected (2, 24)",)), (dict(n_layer=1), ("unexpected",)),
                           (dict(n_layer=3), ("missing", "h.2.attn.c_attn.lora_A.weight (2, 12)"))):
        model = make("gpt2", **changes)
        unchanged(model, lambda: peft.load(model, tmp_path / "a"), FormatError, "this base", *words)
    model, file, config = make("gpt2"), tmp_path / "a" / "adapter_model.safetensors", tmp_path / "a" / "adapter_config.json"
    tensors, values = {n: np.array(t) for n, t in read(file).items()}, json.loads(config.read_text())
    write(file, dict(list(tensors.items())[1:]))
    unchanged(model, lambda: peft.load(model, tmp_path / "a"), FormatError, "1 mismatches", "missing", "lora_A")
    write(file, tensors)
    for changes, words in (({"peft_type": "LOHA"}, "expected one of"), ({"use_qalora": True}, "use_qalora=True")):
        config.write_text(json.dumps({**values, **changes}))
        unchanged(model, lambda: peft.load(model, tmp_path / "a"), FormatError, words)
    for broken in ({"target_modules": 5}, {"target_modules": "q("}, {"lora_alpha": "x"}, {"rank_pattern": [1]}, {"modules_to_save": 5}):
        config.write_text(json.dumps({**values, **broken}))
        unchanged(model, lambda: peft.load(model, tmp_path / "a"), FormatError, "adapter_config.json", "expected the keys and types")
    config.write_text(json.dumps({**values, "from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        peft.load(model, tmp_path / "a")


@pytest.mark.parametrize("init", ["olora", "corda", "loftq", "lora_ga"])
def test_a_lora_whose_beginning_was_taken_off_the_base_is_refused(init, tmp_path):
    """Its A and B alone give other logits, silently: PEFT changes the base's weights when it opens the folder."""
    peft.save(peft.inject(make("gpt2"), peft.LoRA(rank=2)), tmp_path / "a")
    config = tmp_path / "a/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": init}))
    model = make("gpt2")
    unchanged(model, lambda: peft.load(model, tmp_path / "a"), FormatError, init, "path_initial_model_for_weight_conversion")


def test_folders_of_other_kinds_say_what_reads_them(tmp_path):
    peft.save(peft.inject(make("gpt2"), peft.LoRA(rank=2)), tmp_path / "a")
    (tmp_path / "a/adapter_model.safetensors").rename(tmp_path / "a/adapter_model.bin")
    unchanged(model := make("gpt2"), lambda: peft.load(model, tmp_path / "a"), FileNotFoundError, "pickle", "save_pretrained")
    peft.save_hub(peft.inject(make("gpt2"), peft.Houlsby()), tmp_path / "hub")
    unchanged(model, lambda: peft.load(model, tmp_path / "hub"), FormatError, "load_hub")


def test_a_classifier_s_new_layer_is_trained_and_saved_with_the_adapter(tmp_path):
    model = peft.inject(make("bert-classifier"), peft.LoRA(rank=2))
    assert [a.site for a in peft.adapters(model) if "classifier.weight" in f"{a.site}.{next(iter(a.own()))}"] == ["classifier"]
    assert "base_model.model.classifier.weight" in peft.tensors_of(model, "default")


def test_a_report_counts():
    model = peft.inject(make("gpt2"), peft.LoRA(rank=2))
    report = peft.report(model)
    assert report.trainable == 2 * 2 * (12 + 36) and report.total == make("gpt2").num_parameters() + report.trainable
    assert "default: lora" in str(report)
