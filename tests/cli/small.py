"""Small models of three architectures and data of three kinds, for the verbs that fine-tune."""
import json
from itertools import product

import numpy as np

import pyllm
from pyllm.folders import build
from pyllm.models import FAMILIES
from pyllm.text import ByteLevelBPE, WordPiece

WORDS = ["red", "green", "blue", "cat", "dog", "cow"]
SIZES = {"layers": 2, "heads": 2, "width": 16, "context": 48}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def make(root):
    """Writes gpt2, bart, bert (a bare trunk) and answers.jsonl, labels/, spans.jsonl into the folder root -> root."""
    draw = np.random.default_rng(0)
    pick = lambda n: " ".join(draw.choice(WORDS, n))
    texts = [pick(5) for _ in range(40)]
    bpe = ByteLevelBPE.train(texts, 300)
    piece = WordPiece.train(texts, 60)
    for family, architecture, tokenizer in (("gpt2", "GPT2LMHeadModel", bpe), ("bart", "BartForConditionalGeneration", bpe),
                                            ("bert", "BertModel", piece)):
        config = FAMILIES[family][0].from_sizes({"vocab_size": tokenizer.vocab_size, **SIZES}).to_dict()
        if family == "bart":
            config.update(decoder_start_token_id=0, forced_eos_token_id=None)
        pyllm.save(build({**config, "architectures": [architecture]}, seed=0), tokenizer, root / family)
    different = lambda words, length, n: [" ".join(t) for t in draw.permutation(list(product(words, repeat=length)))[:n]]  # no duplicates
    answers = [{"prompt": f"{text} ?", "completion": f" {text.split()[0]}"} for text in different(WORDS, 3, 40)]
    write(root / "answers.jsonl", answers)
    kinds = {"colour": WORDS[:3], "animal": WORDS[3:]}
    texts = {kind: different(words, 4, 25) for kind, words in kinds.items()}
    labelled = [{"text": texts[kind][i], "label": kind} for i in range(25) for kind in kinds]
    write(root / "labels/train.jsonl", labelled[:40])
    write(root / "labels/valid.jsonl", labelled[40:])
    write(root / "spans.jsonl", [{"question": "cow", "context": text, "answers": [
        {"text": text.split()[2], "answer_start": len(" ".join(text.split()[:2])) + 1}]} for text in different(WORDS, 4, 24)])
    return root
