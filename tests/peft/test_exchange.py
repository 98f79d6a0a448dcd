"""Several LoRAs made into one; the formats of AdapterHub, mlx-lm and llama.cpp."""
import json

import numpy as np
import pytest

from pyllm import peft
from pyllm.errors import ConfigError, FormatError
from pyllm.generation import DraftModel, Session, generate
from pyllm.io import gguf, safetensors
from tests.peft.test_use import shaken
from tests.peft.tiny import batch_of, logits, make


def two(family="llama", ranks=(3, 3)):
    model = make(family)
    for seed, rank in enumerate(ranks):
        peft.inject(model, peft.LoRA(rank=rank, alpha=4 + seed), seed=seed, name=f"n{seed}")
        shaken(model, f"n{seed}", seed)
    return model, batch_of(family)


# ---- combinations; beside PEFT's in tests/parity


def test_a_concatenation_is_the_stack_of_the_two():
    model, batch = two(ranks=(1, 3))
    peft.activate(model, "n0", "n1")
    stacked = logits(model, batch).data
    peft.combine(model, {"n0": 1.0, "n1": 1.0}, "both", "cat")
    np.testing.assert_allclose(logits(model, batch).data, stacked, atol=1e-4)
    peft.combine(model, {"n0": 1.0, "n1": 1.0}, "exact", "svd", rank=4)
    np.testing.assert_allclose(logits(model, batch).data, stacked, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear", "dare_ties"])
def test_one_adapter_with_everything_kept_is_itself(kind):
    model, batch = two()
    peft.activate(model, "n1")
    alone = logits(model, batch).data
    peft.combine(model, {"n1": 1.0}, "same", kind, density=1.0)
    np.testing.assert_allclose(logits(model, batch).data, alone, atol=1e-4)


def test_dare_drops_by_its_seed_and_ties_by_size():
    model, _ = two()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        peft.combine(model, {"n0": 1.0, "n1": 0.5}, name, "dare_linear", density=0.5, seed=seed)
    a, b, c = (peft.tensors_of(model, name) for name in "abc")
    assert all(np.array_equal(a[n], b[n]) for n in a) and any(not np.array_equal(a[n], c[n]) for n in a)
    peft.combine(model, {"n0": 1.0}, "small", "ties", density=0.25)
    for name, array in peft.tensors_of(model, "small").items():
        assert np.count_nonzero(array) == array.size // 4, name


def test_what_cannot_be_combined():
    model, _ = two(ranks=(2, 4))
    for call, words in ((lambda: peft.combine(model, {"n0": 1, "n1": 1}, "x"), "ranks"),
                        (lambda: peft.combine(model, {"n0": 1, "n7": 1}, "x", "cat"), "n7"),
                        (lambda: peft.combine(model, {"n0": 1}, "x", "sum"), "expected one of linear"),
                        (lambda: peft.combine(model, {"n0": 1}, "n1", "cat"), "n1")):
        with pytest.raises((ConfigError, ValueError), match=words):
            call()
    peft.inject(model, peft.IA3(), name="ia3")
    with pytest.raises(ValueError, match="no plain LoRA"):
        peft.combine(model, {"ia3": 1.0}, "x", "cat")
    assert peft.names(model) and "x" not in peft.names(model)


def test_a_combined_adapter_is_saved_like_any_other(tmp_path):
    model, batch = two(ranks=(1, 3))
    peft.combine(model, {"n0": 0.3, "n1": -1.0}, "both", "cat")
    peft.save(model, tmp_path / "both", "both")
    other = peft.load(make("llama"), tmp_path / "both")
    assert np.array_equal(logits(other, batch).data, logits(model, batch).data)


# ---- a row its own, and another one in the place of an adapter


def alone(model, name, call):
    """What call() gives with one adapter in force, or with none."""
    if name is not None:
        return call(peft.activate(model, name))
    with peft.disabled(model):
        return call(model)


def test_each_row_of_a_batch_has_its_own_adapter():
    model, batch = two(ranks=(2, 3))
    tokens, chosen = np.repeat(batch.tokens[:1], 4, 0), ["n1", None, "n0", "n1"]
    single = {name: alone(model, name, lambda m: m(tokens).data) for name in ("n0", None, "n1")}
    with peft.rows(model, chosen):
        together = model(tokens).data
        for wrong, words in ((lambda: model(tokens[:2]), "4 rows, a batch of 2"), (lambda: generate(model, None, [[1], [2]]), "2 prompts"),
                             (lambda: peft.rows(model, ["n0"]).__enter__(), "outside of"), (lambda: peft.merge(model), "outside of"),
                             (lambda: peft.activate(model, "n0"), "outside of"), (lambda: peft.remove(model, "n0"), "outside of")):
            with pytest.raises(ValueError, match=words):
                wrong()
    assert np.array_equal(together, np.stack([single[name][i] for i, name in enumerate(chosen)]))
    assert np.array_equal(model(tokens).data, single["n1"])  # in force again
    with pytest.raises(ConfigError, match="n7"), peft.rows(model, ["n7"]):
        pass


@pytest.mark.parametrize("options", [{}, dict(num_return_sequences=2), dict(num_beams=3), dict(slide=True), dict(draft=True)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_row_keeps_its_adapter_where_rows_change_places(family, options):
    """Prompts are read by length, rows leave the batch and are copied: each gives what its adapter alone gives, to the bit."""
    if family == "t5" and (options.get("slide") or options.get("draft")):
        pytest.skip("not of encoder-decoders")
    model, _ = two(family, ranks=(2, 3))
    prompts, chosen = [[3, 4], [5, 6, 7, 8, 9, 3], [3, 4], [8], [9, 1, 2]], ["n1", "n0", None, "n0", "n1"]
    if options.get("draft"):
        options = dict(draft=DraftModel(make(family, seed=4)))
    options = dict(max_tokens=30 if options.get("slide") else 12, stop=(), **options)
    if "num_beams" not in options:
        options |= dict(temperature=0.8, logprobs=not options.get("draft"))
    expected = [alone(model, name, lambda m: generate(m, None, [p], seed=i * options.get("num_return_sequences", 1), **options)[0])
                for i, (name, p) in enumerate(zip(chosen, prompts))]
    with peft.rows(model, chosen):
        found = generate(model, None, prompts, seed=0, **options)
        assert np.array_equal(peft.adapters(model, "n0")[0].rows.ravel(), [0, 1, 0, 1, 0])
    for mine, theirs in zip(found, expected):
        for a, b in zip(*([x] if not isinstance(x, list) else x for x in (mine, theirs))):
            assert (a.ids, a.logprobs, a.score) == (b.ids, b.logprobs, b.score)


def test_a_session_is_refused_where_rows_have_their_own_adapters():
    model, _ = two(ranks=(2, 3))
    with peft.rows(model, ["n0"]), pytest.raises(ConfigError, match="peft.rows"):
        generate(model, None, [[1]], session=Session(model))


def test_an_adapter_is_swapped_for_another_ones_folder(tmp_path):
    model, batch = two(ranks=(2, 3))
    peft.save(model, tmp_path / "n0", "n0")
    peft.activate(model, "n0")
    expected = logits(model, batch).data
    peft.activate(model, "n1")
    mine = logits(model, batch).data
    peft.save(peft.inject(make("llama", num_hidden_layers=3), peft.LoRA(rank=2)), tmp_path / "foreign")
    with pytest.raises(FormatError):
        peft.swap(model, "n1", tmp_path / "foreign")
    assert np.array_equal(logits(model, batch).data, mine)
    peft.swap(model, "n1", tmp_path / "n0")
    assert np.array_equal(logits(model, batch).data, expected) and set(peft.names(model)) == {"n0", "n1"}


# ---- AdapterHub


@pytest.mark.parametrize("method", [peft.Houlsby(reduction=3), peft.Pfeiffer(reduction=4), peft.Parallel(reduction=2)])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart"])
def test_adapterhub_folders(family, method, tmp_path):
    model, batch = shaken(peft.inject(make(family), method, name="task")), batch_of(family)
    peft.save_hub(model, tmp_path / "hub")
    other = peft.load_hub(make(family), tmp_path / "hub")
    assert np.array_equal(logits(other, batch).data, logits(model, batch).data)
    names = safetensors.read(tmp_path / "hub/adapter.safetensors")
    place = {"bert": "bert.encoder.layer.0.output", "gpt2": "transformer.h.0.output_adapters", "llama": "model.layers.0.output_adapters",
             "t5": "encoder.block.0.layer.1", "bart": "model.encoder.layers.0.output_adapters"}[family]
    assert f"{place}.adapters.task.adapter_down.0.weight" in names and f"{place}.adapters.task.adapter_up.bias" in names


def test_adapterhub_folders_that_do_not_fit(tmp_path):
    peft.save_hub(peft.inject(make("bert"), peft.Houlsby(reduction=3), name="task"), tmp_path / "hub")
    with pytest.raises(FormatError, match="this base"):
        peft.load_hub(make("bert", hidden_size=24), tmp_path / "hub")
    file = tmp_path / "hub/adapter_config.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "config": {**about["config"], "use_gating": True}}))
    with pytest.raises(FormatError, match="use_gating"):
        peft.load_hub(make("bert"), tmp_path / "hub")
    with pytest.raises(ConfigError, match="expected houlsby"):
        peft.save_hub(peft.inject(make("bert"), peft.LoRA(rank=2)), tmp_path / "x")


# ---- mlx-lm


@pytest.mark.parametrize("dora", [False, True])
def test_mlx_adapters_are_read(dora, tmp_path):
    model, batch = peft.inject(make("llama"), peft.LoRA(rank=2, alpha=6, dora=dora), r"model\.layers\.1\..*_proj"), batch_of("llama")
    shaken(model)
    tensors = {}
    for a in peft.adapters(model):
        tensors |= {f"{a.site}.lora_a": a.lora_A.data.T, f"{a.site}.lora_b": a.lora_B.data.T}
        tensors |= {f"{a.site}.m": a.magnitude.data} if dora else {}
    safetensors.write(tmp_path / "adapters.safetensors", tensors)
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    other = peft.load_mlx(make("llama"), tmp_path)
    np.testing.assert_allclose(logits(other, batch).data, logits(model, batch).data, atol=1e-6)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match="lora_parameters"):
        peft.load_mlx(make("llama"), tmp_path)


# ---- GGUF


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_gguf_adapters(family, tmp_path):
    """The merged model's GGUF file is the base's plus alpha / rank * lora_b @ lora_a, tensor by tensor: rows of q and k in their order."""
    import pyllm

    sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2) if family != "gpt2" else \
        dict(n_embd=64, n_head=4)
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["some text " * 9], 259)
    model = make(family, vocab_size=tokenizer.vocab_size, **sizes)
    shaken(peft.inject(model, peft.LoRA(rank=2, alpha=6, rslora=True), "all-linear"))
    peft.save_gguf(model, tmp_path / "adapter.gguf")
    about, parts = gguf.read(tmp_path / "adapter.gguf")
    assert about["general.type"] == "adapter" and about["adapter.type"] == "lora" and about["adapter.lora.alpha"] == 6
    peft.merge(model)
    pyllm.save(model, tokenizer, tmp_path / "merged.gguf")
    peft.unmerge(model)
    peft.remove(model, "default")
    pyllm.save(model, tokenizer, tmp_path / "base.gguf")
    (_, merged), (_, plain) = gguf.read(tmp_path / "merged.gguf"), gguf.read(tmp_path / "base.gguf")
    changed = {name for name in plain if not np.array_equal(merged[name], plain[name])}
    assert changed == {name.removesuffix(".lora_a") for name in parts if name.endswith(".lora_a")}
    for name in changed:
        a, b = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
        np.testing.assert_allclose(merged[name], plain[name] + about["adapter.lora.alpha"] / len(a) * b @ a, atol=1e-5)


def test_what_gguf_has_no_place_for(tmp_path):
    for method, targets in ((peft.LoRA(rank=2, dora=True), None), (peft.IA3(), None), (peft.LoRA(rank=2), ["embed_tokens"])):
        with pytest.raises(ConfigError, match="expected a LoRA over linear layers"):
            peft.save_gguf(peft.inject(make("llama"), method, targets), tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="no GGUF names"):
        peft.save_gguf(peft.inject(make("t5"), peft.LoRA(rank=2)), tmp_path / "x.gguf")
