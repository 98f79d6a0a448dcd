"""English to German from scratch: a shared vocabulary, an encoder-decoder of 2.4 million parameters, beam search, BLEU.

    python examples/translation.py multi30k      # with train.en, train.de, val.*, test_2016_flickr.*, each also as .gz
"""
from functools import partial

import common

import pyllm
from pyllm import data
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models import Bart, BartConfig
from pyllm.objectives import seq2seq
from pyllm.text import ByteLevelBPE

args = common.arguments(__doc__, steps="training steps (default 6000)")
steps = int(args.steps or (20 if args.quick else 6000))
languages = {"source": "en", "target": "de"}
pairs = list(data.read_examples(args.data, "train", columns=languages))
tokenizer = ByteLevelBPE.train([side for pair in pairs for side in (pair["prompt"], pair["completion"])], 400 if args.quick else 8000)
end = tokenizer.eos_id  # ends both sides, and begins the decoder's
options = dict(columns=languages, architecture="encoder-decoder", max_length=128)
train, valid = (common.rows(args.data, split, tokenizer, **options) for split in ("train", "valid"))

width, layers = (32, 1) if args.quick else (128, 4)
model = Bart(BartConfig.from_dict({
    "vocab_size": tokenizer.vocab_size, "d_model": width, "encoder_layers": layers, "decoder_layers": layers,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width,
    "max_position_embeddings": 256, "dropout": 0.15, "activation_function": "relu", "scale_embedding": True, "init_std": width**-0.5,
    "decoder_start_token_id": end, "forced_eos_token_id": None, "eos_token_id": end, "pad_token_id": end, "bos_token_id": end,
})).initialize(args.seed)
print(f"{model.num_parameters():,} parameters, {tokenizer.vocab_size} tokens")

common.fit(model, seq2seq, data.row_batches(train, start=end, tokens=4096, seed=args.seed),
           data.row_batches(valid, start=end, tokens=8192, shuffle=False), args, steps=steps, lr=4e-3, every=500,
           learns=partial(seq2seq, label_smoothing=0.1), weight_decay=1e-4)
if args.out:
    pyllm.save(model, tokenizer, args.out)

test = data.read_examples(args.data, "test", columns=languages)
scores, records = evaluate("translate", model, tokenizer, test, Options(batch=50, max_tokens=100, num_beams=5),
                           limit=8 if args.quick else None)
print(f"{next(iter(test))['prompt']!r} -> {records[0]['prediction']!r}")
for name, score in scores.items():
    print(f"{name} {score} on the test split: {score.signature}")
