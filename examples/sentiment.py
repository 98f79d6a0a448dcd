"""Is a sentence about a film kind or not: a pretrained encoder fine-tuned, or a small one from scratch; accuracy on SST-2's test.

    python examples/sentiment.py sst2 --model MiniLM       # with train.tsv, dev.tsv, test.tsv; a folder with BERT, MiniLM ...
    python examples/sentiment.py sst2                      # from scratch
"""
import common

import pyllm
from pyllm import data, training
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models.bert import Bert, BertConfig
from pyllm.objectives import classify
from pyllm.text import WordPiece

args = common.arguments(__doc__, model="a folder with a pretrained encoder (default: none, from scratch)")
texts = [example["text"] for example in data.read_examples(args.data, "train")]
if args.model:
    base, tokenizer = pyllm.load(args.model)
    steps, lr, every = (4 if args.quick else 651), 1e-4, 217
else:
    tokenizer = WordPiece.train(texts, 200 if args.quick else 8000)
    sizes = {"layers": 2, "heads": 4, "width": 32 if args.quick else 128, "context": 128, "dropout": 0.2}
    base = Bert.alone(BertConfig.from_sizes({"vocab_size": tokenizer.vocab_size, **sizes})).initialize(args.seed)
    steps, lr, every = (4 if args.quick else 1500), 1e-3, 200
names = data.label_names(data.read_examples(args.data, "train"))
model, new, _ = training.transfer(base, "classify", labels=names, seed=args.seed)
print(f"{model.num_parameters():,} parameters; new: {', '.join(new)}")
options = dict(architecture="encoder", max_length=128, labels=names)
train, valid = (common.rows(args.data, split, tokenizer, **options) for split in ("train", "valid"))

common.fit(model, classify, data.row_batches(train, batch=32, seed=args.seed), data.row_batches(valid, batch=64, shuffle=False), args,
           steps=steps, lr=lr, every=every, by=lambda found: -found.metrics["accuracy"], ema=0.99, betas=(0.9, 0.999))
if args.out:
    pyllm.save(model, tokenizer, args.out)

scores, _ = evaluate("classify", model, tokenizer, data.read_examples(args.data, "test"), Options(batch=64))
for name in ("accuracy", "matthews", "ece"):
    print(f"{name} {scores[name]} on the test split")
