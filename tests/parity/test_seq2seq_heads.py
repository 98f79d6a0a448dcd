"""Heads of T5 and BART beside transformers: outputs, every gradient, folders in both directions; T5's encoder alone.

pytest -m parity tests/parity/test_seq2seq_heads.py
"""
import numpy as np
import pytest

import pyllm
from pyllm.autograd import ops
from pyllm.folders import build, load_weights

from .test_bert import close
from .test_seq2seq import BART, T5

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

HEADS = {"T5EncoderModel": T5, "T5Model": T5, "T5ForSequenceClassification": T5, "T5ForTokenClassification": T5,
         "T5ForQuestionAnswering": T5, "BartForSequenceClassification": BART, "BartForQuestionAnswering": BART}


@pytest.fixture(params=[(n, v) for n in HEADS for v in ("plain", "gated")], ids="-".join)
def pair(request):
    """-> (peer in float64, ours) with the same random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    name, variant = request.param
    if variant == "gated" and HEADS[name] is BART:
        pytest.skip("T5's alone")
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if variant == "gated" else {}
    config = transformers.AutoConfig.for_model(**HEADS[name] | gated, num_labels=2 if "Question" in name else 5, classifier_dropout=0.0,
                                                decoder_start_token_id=2 if HEADS[name] is BART else 0)
    peer = getattr(transformers, name)(config).double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.randn_like(p)
            p.copy_(p.float())
    ours = build({**config.to_dict(), "architectures": [name]})
    load_weights(ours, {n: p.detach().float().numpy() for n, p in peer.named_parameters()})
    return peer, ours


def draw(ours, padding):
    tokens = np.random.default_rng(0).integers(3, ours.config.vocab_size, (3, 11)).astype(np.int32)
    eos, mask = ours.config.eos, np.ones_like(tokens)
    tokens[:, -1], tokens[:, 5] = eos, eos
    if padding:
        tokens[1, 6:], mask[1, 6:] = 0, 0
        tokens[0, 2] = tokens[1, 1] = tokens[2, 2] = eos  # the peer wants as many in each row
        tokens[0, 5] = tokens[2, 5] = 4
    return tokens, mask


def run_peer(peer, tokens, mask):
    import torch

    inputs = {"input_ids": tokens, "attention_mask": mask}
    if type(peer).__name__ == "T5Model":
        inputs["decoder_input_ids"] = np.concatenate([np.zeros((len(tokens), 1), int), tokens[:, :-1]], 1)
    out = peer(**{k: torch.from_numpy(np.asarray(v)).long() for k, v in inputs.items()})
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1)
    return out.logits if "logits" in out else out.last_hidden_state


@pytest.mark.parametrize("padding", [False, True])
def test_outputs_and_every_gradient(pair, padding):
    import torch

    peer, ours = pair
    tokens, mask = draw(ours, padding)
    expected, got = run_peer(peer, tokens, mask), ours(tokens, mask)
    real = mask > 0 if got.ndim == 3 else slice(None)
    close(got.data[real], expected.detach().numpy()[real], 5e-6)
    weights = np.random.default_rng(1).standard_normal(got.shape) * (mask[..., None] if got.ndim == 3 else 1)
    (expected * torch.from_numpy(weights)).sum().backward()
    ops.multiply(got, pyllm.Tensor(weights.astype(np.float32))).sum().backward()
    grads = {n.removeprefix(ours.PREFIX): p.grad for n, p in ours.named_parameters()}
    for name, p in peer.named_parameters():
        own = grads.pop(name.removeprefix(ours.PREFIX))
        if p.grad is None:
            assert own is None, name
        else:
            close(own, p.grad.numpy(), 2e-5, name)
    assert not grads


def test_folders_in_both_directions(pair, tmp_path):
    import torch

    peer, ours = pair
    tokens, mask = draw(ours, False)
    pyllm.save(ours, None, tmp_path / "ours")
    opened, report = type(peer).from_pretrained(tmp_path / "ours", dtype=torch.float64, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        close(run_peer(opened.eval(), tokens, mask).numpy(), run_peer(peer, tokens, mask).numpy(), 1e-6)
    peer.float().save_pretrained(tmp_path / "theirs")
    again, _ = pyllm.load(tmp_path / "theirs")
    assert type(again) is type(ours) and np.array_equal(again(tokens).data, ours(tokens).data)


def test_the_encoder_of_a_whole_t5_file(tmp_path):
    import torch
    import transformers

    peer = transformers.T5ForConditionalGeneration(transformers.AutoConfig.for_model(**T5)).eval()
    peer.save_pretrained(tmp_path / "whole")
    whole, _ = pyllm.load(tmp_path / "whole")
    rows = [[5, 6, 7, 1], [9, 1]]
    with torch.no_grad():
        means = [peer.encoder(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0).numpy() for row in rows]
    np.testing.assert_allclose(pyllm.embed(whole, None, rows, normalize=False), means, atol=1e-5)
