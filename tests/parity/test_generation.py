"""Generation beside transformers: the steps before a draw, greedy texts, beam search, what generation_config.json means.

pytest -m parity tests/parity/test_generation.py
"""
import numpy as np
import pytest

import pyllm
from pyllm.folders import build, load_weights
from pyllm.generation import Sampling

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

V, END = 61, 2
LLAMA = dict(model_type="llama", vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
GPT2 = dict(model_type="gpt2", vocab_size=V, n_positions=64, n_embd=24, n_layer=2, n_head=4)
T5 = dict(model_type="t5", vocab_size=V, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0)
BART = dict(model_type="bart", vocab_size=V, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=36, max_position_embeddings=64)
CONFIGS = {"llama": LLAMA, "gpt2": GPT2, "t5": T5, "bart": BART}
IDS = dict(bos_token_id=1, eos_token_id=END, pad_token_id=0)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """-> (peer, ours) in float32 with the same random weights, sharp enough that texts differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(4)
    config = AutoConfig.for_model(**CONFIGS[request.param], **IDS)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    peer = kind.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.15 * torch.randn_like(p)
    ours = build(config.to_dict())
    load_weights(ours, {n: t.numpy() for n, t in peer.state_dict().items()})
    return peer, ours


PROMPTS = [[5, 9, 4, 17, 30, 8], [40, 41, 12, 13, 3, 22], [7, 7, 7, 8, 7, 7]]


def run(peer, **options):
    """-> (ids drawn for each row, cut behind the first end token; scores of the sequences or None)."""
    import torch

    drawn = peer.generate(torch.tensor(PROMPTS), return_dict_in_generate=True, output_scores=True,
                          **{"max_new_tokens": 14, "do_sample": False, **options})
    skip = 1 if peer.config.is_encoder_decoder else len(PROMPTS[0])
    rows = []
    for row in drawn.sequences[:, skip:].tolist():
        rows.append(row[: row.index(END) + 1] if END in row else row)
    return rows, getattr(drawn, "sequences_scores", None)


GREEDY = {
    "plain": {},
    "repetition": dict(repetition_penalty=1.7),
    "ngram": dict(no_repeat_ngram_size=2),
    "one": dict(no_repeat_ngram_size=1),
    "suppressed": dict(suppress_tokens=[4, 5, 6, 7, 8], begin_suppress_tokens=list(range(20, 40))),
    "forced": dict(forced_eos_token_id=END, min_new_tokens=14),
    "least": dict(min_new_tokens=9),
    "bad words": dict(bad_words_ids=[[4], [5, 6], [8, 7, 7], [22, 31], [12, 13, 3]] + [[i, j] for i in range(30, 50) for j in range(20)]),
    "all": dict(repetition_penalty=1.2, no_repeat_ngram_size=3, min_new_tokens=5, suppress_tokens=[9], forced_eos_token_id=END),
}


@pytest.mark.parametrize("options", GREEDY.values(), ids=GREEDY)
def test_greedy(pair, options):
    peer, ours = pair
    expected, _ = run(peer, **{"forced_eos_token_id": None, **options})
    options = {"forced_eos_token_id": None, **options}
    options["min_tokens"] = options.pop("min_new_tokens", 0)
    assert [g.ids for g in pyllm.generate(ours, None, PROMPTS, max_tokens=14, temperature=0, **options)] == expected


BEAMS = {
    "two": dict(num_beams=2),
    "many": dict(num_beams=5, num_return_sequences=3),
    "short": dict(num_beams=4, length_penalty=-1.0, num_return_sequences=2),
    "long": dict(num_beams=4, length_penalty=2.0, num_return_sequences=4),
    "early": dict(num_beams=3, early_stopping=True, num_return_sequences=3),
    "never": dict(num_beams=3, early_stopping="never", length_penalty=0.0),
    "never-long": dict(num_beams=3, early_stopping="never", length_penalty=1.5, num_return_sequences=2),
    "ngram": dict(num_beams=4, no_repeat_ngram_size=2, repetition_penalty=1.3),
    "summary": dict(num_beams=4, no_repeat_ngram_size=3, length_penalty=2.0, early_stopping=True, min_new_tokens=5,
                    forced_bos_token_id=1, forced_eos_token_id=END),
}


@pytest.mark.parametrize("ends", [[END], [END, *range(10, 22)]], ids=["one-end", "many-ends"])
@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
def test_beam_search(pair, options, ends):
    peer, ours = pair
    if not peer.config.is_encoder_decoder:
        options = {k: v for k, v in options.items() if k != "forced_bos_token_id"}  # there of a prompt of one token alone
    options = {"forced_eos_token_id": None, **options}
    import torch

    drawn = peer.generate(torch.tensor(PROMPTS), return_dict_in_generate=True, output_scores=True, max_new_tokens=14, do_sample=False,
                          eos_token_id=ends, **options)
    skip, rows = 1 if peer.config.is_encoder_decoder else len(PROMPTS[0]), []
    for row in drawn.sequences[:, skip:].tolist():
        stop = next((i for i, id in enumerate(row) if id in ends), len(row))
        rows.append(row[: stop + 1])
    options["min_tokens"] = options.pop("min_new_tokens", 0)
    before, ours.generation = ours.generation, {"eos_token_id": ends}
    results = pyllm.generate(ours, None, PROMPTS, max_tokens=14, **options)
    ours.generation = before
    results = [g for row in results for g in row] if options.get("num_return_sequences", 1) > 1 else results
    assert [g.ids for g in results] == rows
    np.testing.assert_allclose([g.score for g in results], drawn.sequences_scores.numpy(), rtol=1e-6, atol=1e-5)
    assert [g.finish_reason for g in results] == ["stop" if g.ids[-1] in ends else "length" for g in results]


def test_ragged_beams_do_not_know_their_neighbours(pair):
    _, ours = pair
    prompts, options = [[5, 9], [40, 41, 12, 13, 3, 22, 9, 9, 10], [7]], dict(max_tokens=10, num_beams=3, num_return_sequences=2)
    together = pyllm.generate(ours, None, prompts, **options)
    for prompt, found in zip(prompts, together):
        alone = pyllm.generate(ours, None, prompt, **options)
        assert [(g.ids, g.score) for g in alone] == [(g.ids, g.score) for g in found]


def processed(scores, text, prompt, options, limit):
    """scores after the peer's own processors, in the order in which its generate has them."""
    import torch
    from transformers import AutoConfig, GenerationConfig, GPT2LMHeadModel

    small = GPT2LMHeadModel(AutoConfig.for_model(**{**GPT2, "n_embd": 4, "n_layer": 1, "n_head": 1}, **IDS))
    config = GenerationConfig(**options, eos_token_id=END, max_length=prompt + limit)
    config._eos_token_tensor = torch.tensor([END])
    processors = small._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu", logits_processor=[])
    return processors(torch.tensor([text]), torch.from_numpy(scores.copy())).numpy()


@pytest.mark.parametrize("options", [
    dict(repetition_penalty=0.6), dict(repetition_penalty=2.5), dict(no_repeat_ngram_size=3), dict(suppress_tokens=[1, 5]),
    dict(begin_suppress_tokens=[3, 9]), dict(min_new_tokens=4), dict(forced_eos_token_id=END), dict(sequence_bias={(7,): 3.5, (9,): -4.0}),
    dict(repetition_penalty=1.4, no_repeat_ngram_size=2, suppress_tokens=[8], begin_suppress_tokens=[4], min_new_tokens=2,
         sequence_bias={(4,): 2.0, (8,): 9.0}),
], ids=lambda options: "-".join(options))
@pytest.mark.parametrize("drawn", [0, 1, 3, 9])
def test_the_steps_before_a_draw(options, drawn):
    rng, prompt, limit = np.random.default_rng(drawn), 6, 10
    text = rng.integers(3, 12, prompt + drawn).tolist()
    scores = rng.standard_normal((1, V)).astype(np.float32) * 3
    expected = processed(scores, text, prompt, options, limit)
    ours = {k: v for k, v in options.items() if k not in ("min_new_tokens", "sequence_bias")}
    if "min_new_tokens" in options:
        ours["min_tokens"] = options["min_new_tokens"]
    if "sequence_bias" in options:
        ours["logit_bias"] = {id: by for (id,), by in options["sequence_bias"].items()}
    np.testing.assert_array_equal(Sampling(**ours).adjust(scores, [text], [prompt], {END}, limit), expected)


FILES = [{}, {"do_sample": False, "repetition_penalty": 1.5}, {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 9},
         {"eos_token_id": [2, 11, 12, 13]}, {"min_new_tokens": 8, "no_repeat_ngram_size": 2}]


@pytest.mark.parametrize("values", FILES, ids=lambda v: "-".join(v) or "empty")
def test_generation_config_means_what_it_means_there(pair, values, tmp_path):
    import torch
    from transformers import GenerationConfig

    peer, _ = pair
    before = peer.generation_config
    peer.generation_config = GenerationConfig(**{**IDS, "decoder_start_token_id": before.decoder_start_token_id, **values})
    peer.save_pretrained(tmp_path / "theirs")
    ends = peer.generation_config.eos_token_id
    more = {} if "max_new_tokens" in values else {"max_new_tokens": 12}
    drawn = peer.generate(torch.tensor(PROMPTS), **more)
    peer.generation_config = before
    skip, expected = 1 if peer.config.is_encoder_decoder else len(PROMPTS[0]), []
    for row in drawn[:, skip:].tolist():
        stop = next((i for i, id in enumerate(row) if id == ends or isinstance(ends, list) and id in ends), len(row))
        expected.append(row[: stop + 1])
    model, _ = pyllm.load(tmp_path / "theirs")
    more = {"max_tokens": 12} if more else {}
    assert [g.ids for g in pyllm.generate(model, None, PROMPTS, **more)] == expected
    pyllm.save(model, None, tmp_path / "ours")
    assert GenerationConfig.from_pretrained(tmp_path / "ours").to_dict() == GenerationConfig.from_pretrained(tmp_path / "theirs").to_dict()


@pytest.mark.parametrize("options", [dict(temperature=0.6), dict(top_k=4), dict(top_p=0.6), dict(min_p=0.2),
                                     dict(temperature=1.5, top_k=9, top_p=0.8, min_p=0.1)], ids=lambda options: "-".join(options))
def test_the_cuts_keep_the_same_tokens(options):
    """Tokens that 3000 draws give are those that the peer's warpers leave, as often."""
    import torch
    from transformers import AutoConfig, GenerationConfig, GPT2LMHeadModel

    small = GPT2LMHeadModel(AutoConfig.for_model(**{**GPT2, "n_embd": 4, "n_layer": 1, "n_head": 1}, **IDS))
    config = GenerationConfig(**options, do_sample=True, eos_token_id=END, max_length=20)
    scores = np.random.default_rng(5).standard_normal((1, V)).astype(np.float32) * 2
    processors = small._get_logits_processor(config, input_ids_seq_length=3, device="cpu", logits_processor=[])
    want = torch.softmax(processors(torch.tensor([[1, 2, 3]]), torch.from_numpy(scores.copy())), -1)[0].numpy()
    n = 3000
    drawn = Sampling(**options).choose(scores.repeat(n, 0), [pyllm.Rng(3).fold(i) for i in range(n)])
    counts = np.bincount(drawn, minlength=V)
    assert not counts[want == 0].any()
    np.testing.assert_allclose(counts / n, want, atol=4 * 0.5 / n**0.5)
