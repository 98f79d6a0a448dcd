"""Adapters beside PEFT: its folders opened here, ours opened there, equal logits both ways.

pytest -m parity tests/parity/test_peft.py
"""
import numpy as np
import pytest

from pyllm import objectives
from pyllm import peft as ours
from pyllm.folders import build, load_weights
from pyllm.io import safetensors
from tests.peft.tiny import CONFIGS, batch_of, logits

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
AUTO = {"gpt2": "CausalLM", "bert": "MaskedLM", "t5": "Seq2SeqLM", "bart": "Seq2SeqLM", "bert-classifier": "SequenceClassification"}
TASKS = {"CausalLM": "CAUSAL_LM", "MaskedLM": None, "Seq2SeqLM": "SEQ_2_SEQ_LM", "SequenceClassification": "SEQ_CLS"}
RANDOM = dict(init_lora_weights=False)
CASES = {  # name: (family, class in peft, its settings, our method)
    **{f"lora-{f}": (f, "LoraConfig", dict(r=3, lora_alpha=5, **RANDOM), ours.LoRA(rank=3, alpha=5)) for f in CONFIGS},
    "rslora": ("gpt2", "LoraConfig", dict(r=3, lora_alpha=5, use_rslora=True, **RANDOM), ours.LoRA(rank=3, alpha=5, rslora=True)),
    "dora-gpt2": ("gpt2", "LoraConfig", dict(r=3, use_dora=True, **RANDOM), ours.LoRA(rank=3, dora=True)),
    "dora-llama": ("llama", "LoraConfig", dict(r=3, use_dora=True, **RANDOM), ours.LoRA(rank=3, dora=True)),
    "patterns": ("llama", "LoraConfig", dict(r=3, target_modules="all-linear", rank_pattern={"q_proj": 5},
                                             alpha_pattern={"layers.1.mlp.up_proj": 20}, **RANDOM),
                 ours.LoRA(rank=3, rank_pattern={"q_proj": 5}, alpha_pattern={"layers.1.mlp.up_proj": 20})),
    "head": ("llama", "LoraConfig", dict(r=3, target_modules=["q_proj", "lm_head"], **RANDOM), ours.LoRA(rank=3)),
    "tied-head": ("gpt2", "LoraConfig", dict(r=3, target_modules=["c_attn", "lm_head"], **RANDOM), ours.LoRA(rank=3)),
    "embedding": ("llama", "LoraConfig", dict(r=3, target_modules=["q_proj", "embed_tokens"], **RANDOM), ours.LoRA(rank=3)),
    "tied-embedding": ("gpt2", "LoraConfig", dict(r=3, target_modules=["c_attn", "wte"], **RANDOM), ours.LoRA(rank=3)),
    "bias": ("gpt2", "LoraConfig", dict(r=3, bias="all", **RANDOM), ours.LoRA(rank=3, bias="all")),
    "bias-lora-only": ("bert", "LoraConfig", dict(r=3, bias="lora_only", **RANDOM), ours.LoRA(rank=3, bias="lora_only")),
    **{f"ia3-{f}": (f, "IA3Config", dict(init_ia3_weights=False), ours.IA3()) for f in CONFIGS},
    **{f"ln-{f}": (f, "LNTuningConfig", dict(target_modules=ours.LNTuning.TARGETS[CONFIGS[f]["model_type"]]), ours.LNTuning())
       for f in CONFIGS},
    **{f"prefix-{f}": (f, "PrefixTuningConfig", dict(num_virtual_tokens=3), ours.PrefixTuning(3, places=("decoder",)))
       for f in CONFIGS if not f.startswith("bert")},
    "prefix-projection": ("llama", "PrefixTuningConfig", dict(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7),
                          ours.PrefixTuning(3, projection=True)),
    **{f"prompt-{f}": (f, "PromptTuningConfig", dict(num_virtual_tokens=3), ours.PromptTuning(3)) for f in CONFIGS
       if not f.startswith("bert")},
    **{f"p-tuning-{f}": (f, "PromptEncoderConfig", dict(num_virtual_tokens=3, encoder_hidden_size=7), ours.PTuning(3, hidden=7))
       for f in ("gpt2", "gemma3_text", "bart")},
    **{f"vera-{f}": (f, "VeraConfig", dict(r=5), ours.VeRA(5)) for f in ("gpt2", "llama", "bert")},
    "vera-shapes": ("llama", "VeraConfig", dict(r=5, target_modules=["q_proj", "down_proj"]), ours.VeRA(5)),
    **{f"tokens-{f}": (f, "TrainableTokensConfig", dict(token_indices=[15, 26], target_modules=[e]), ours.TrainedTokens((15, 26)))
       for f, e in (("gpt2", "wte"), ("llama", "embed_tokens"))},
    **{f"adalora-{f}": (f, "AdaLoraConfig", dict(init_r=4, target_r=2, lora_alpha=5, total_step=9), ours.AdaLoRA(4, 2, alpha=5))
       for f in CONFIGS if f != "mistral"},  # has no default there
    "pissa": ("llama", "LoraConfig", dict(r=3, init_lora_weights="pissa"), ours.LoRA(rank=3, init="pissa")),
}


def peer_of(family):
    import torch
    import transformers

    torch.manual_seed(0)
    config = {k: v for k, v in CONFIGS[family].items() if k != "architectures"}
    plain = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0) if family == "gpt2" else {}
    config = transformers.AutoConfig.for_model(**config, **plain, pad_token_id=0)
    auto = getattr(transformers, f"AutoModelFor{AUTO.get(family, 'CausalLM')}")
    peer = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.randn_like(p)
    return peer


def ours_of(peer):
    model = build({**peer.config.to_dict(), "architectures": [type(peer).__name__]})
    load_weights(model, {n: p.detach().numpy().copy() for n, p in peer.named_parameters()})
    return model


def run(peer, batch):
    import torch

    with torch.no_grad():
        inputs = dict(input_ids=torch.from_numpy(batch.tokens).long(), attention_mask=torch.ones(batch.tokens.shape, dtype=torch.long))
        if batch.decoder_tokens is not None:
            inputs |= dict(decoder_input_ids=torch.from_numpy(batch.decoder_tokens).long())
        out = peer(**inputs).logits.numpy()
        return out[:, -batch.targets.shape[1] :] if out.ndim == 3 else out  # of the text, not of virtual tokens


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))


def shaken(model):
    """Random numbers in every adapter: what is zero at the start hides what does not fit."""
    draw = np.random.default_rng(7)
    for adapter in ours.adapters(model):
        for p in adapter.own().values():
            p.data = (p.data + 0.3 * draw.standard_normal(p.shape)).astype(np.float32)


@pytest.mark.parametrize("family, kind, settings, method", CASES.values(), ids=CASES)
def test_their_folder_here_and_ours_there(family, kind, settings, method, tmp_path):
    import peft
    import torch

    batch, peer = batch_of(family), peer_of(family)
    model, plain = ours_of(peer), run(peer, batch)
    adapted = peft.get_peft_model(peer, getattr(peft, kind)(task_type=TASKS[AUTO.get(family, "CausalLM")], **settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn_like(p)
    expected = run(adapted, batch)
    assert np.abs(expected - plain).max() > 1e-3
    adapted.save_pretrained(tmp_path / "theirs")
    ours.load(model, tmp_path / "theirs")
    close(logits(model, batch).data, expected)

    model, targets = ours_of(peer_of(family)), settings.get("target_modules")
    ours.inject(model, method, targets, seed=1)
    shaken(model)
    ours.save(model, tmp_path / "ours")
    if kind == "PrefixTuningConfig" and batch.decoder_tokens is not None:
        return  # a prefix for each layer is more than PEFT's file holds
    reopened = peft.PeftModel.from_pretrained(peer_of(family), tmp_path / "ours").eval()
    close(run(reopened, batch), logits(model, batch).data)


class Given:
    """An optimizer whose steps are given: the same numbers for both libraries."""

    steps = 0

    def step(self, lr, scale=1.0):
        self.steps += 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ranks_are_allocated_and_folders_pruned_as_there(family, tmp_path):
    import peft
    import torch

    schedule, targets = dict(init_r=4, target_r=2, tinit=2, tfinal=3, deltaT=2, total_step=12), {"llama": ["q_proj", "up_proj"]}.get(family)
    batch, peer, model = batch_of(family), peer_of(family), ours_of(peer_of(family))
    adapted = peft.get_peft_model(peer, peft.AdaLoraConfig(task_type="CAUSAL_LM", lora_alpha=5, target_modules=targets, **schedule)).eval()
    ours.inject(model, ours.AdaLoRA(alpha=5, **schedule), targets)
    allocator, draw, masks = ours.allocate(model, Given(), 99), np.random.default_rng(3), set()
    theirs = dict(adapted.base_model.model.named_parameters())
    for step in range(1, 13):
        scale = (0.1, 1.0, 4.0)[step % 3]  # clipping and the mean, another one each step
        for adapter in ours.adapters(model):
            for key, p in adapter.own().items():
                other, values, p.grad = theirs[f"{adapter.site}.{key}.default"], *draw.standard_normal((2, *p.shape)).astype(np.float32)
                p.data = p.data + np.float32(0.2) * values
                other.data, other.grad = torch.from_numpy(p.data.copy()), torch.from_numpy(p.grad * np.float32(scale))
        allocator.step(0.0, scale)
        adapted.base_model.update_and_allocate(step)
        for adapter in ours.adapters(model):
            np.testing.assert_array_equal(adapter.lora_E.data, theirs[f"{adapter.site}.lora_E.default"].detach().numpy(), str(step))
        masks.add(tuple(np.concatenate([a.kept for a in ours.adapters(model)])))
    assert len(masks) > 2
    expected = run(adapted, batch)
    close(logits(model, batch).data, expected)
    adapted.save_pretrained(tmp_path / "theirs")
    ours.save(model, tmp_path / "ours")
    close(logits(ours.load(ours_of(peer_of(family)), tmp_path / "theirs"), batch).data, expected)
    close(run(peft.PeftModel.from_pretrained(peer_of(family), tmp_path / "ours").eval(), batch), expected)
    one, two = (safetensors.read(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert {n: a.shape for n, a in one.items()} == {n: a.shape for n, a in two.items()}


def test_the_orthogonality_term_is_theirs():
    import peft
    import torch

    batch, peer, model = batch_of("llama"), peer_of("llama"), ours_of(peer_of("llama"))
    adapted = peft.get_peft_model(peer, peft.AdaLoraConfig(task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=9, orth_reg_weight=0.3))
    ours.inject(model, ours.AdaLoRA(4, 2, orth_reg_weight=0.3))
    shaken(model)
    theirs = dict(adapted.base_model.model.named_parameters())
    own = {f"{a.site}.{key}.default": p for a in ours.adapters(model) for key, p in a.own().items()}
    for name, p in own.items():
        theirs[name].data = torch.from_numpy(p.data.copy())
    loss = ours.orthogonal(objectives.clm)(model, batch)
    loss.total.backward()
    tokens, labels = (torch.from_numpy(np.pad(a, pad, constant_values=c)).long() for a, pad, c in (
        (batch.tokens, ((0, 0), (0, 1)), 0), (batch.targets, ((0, 0), (1, 0)), -100)))
    expected = adapted(input_ids=tokens, labels=labels).loss
    expected.backward()
    np.testing.assert_allclose(loss.total.item() / loss.count, expected.item(), rtol=1e-5)
    for name, p in own.items():
        np.testing.assert_allclose(p.grad / loss.count, theirs[name].grad.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["linear", "cat", "svd", "ties"])
def test_weighted_combinations(kind, tmp_path):
    import peft

    batch, model = batch_of("llama"), ours_of(peer_of("llama"))
    for seed, name in enumerate(("one", "two")):
        ours.inject(model, ours.LoRA(rank=4, alpha=6 + seed), ["q_proj", "up_proj"], seed=seed, name=name)
    shaken(model)
    for name in ("one", "two"):
        ours.save(model, tmp_path / name, name)
    theirs = peft.PeftModel.from_pretrained(peer_of("llama"), tmp_path / "one", adapter_name="one")
    theirs.load_adapter(tmp_path / "two", adapter_name="two")
    theirs.add_weighted_adapter(["one", "two"], [0.7, -0.4], "both", combination_type=kind, density=0.6,
                                **({"svd_full_matrices": False} if kind == "svd" else {}))
    theirs.set_adapter("both")
    ours.combine(model, {"one": 0.7, "two": -0.4}, "both", kind, density=0.6)
    got, expected = logits(model, batch).data, run(theirs.eval(), batch)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
