"""Writes vectors.json: a tokenizer trained by the `tokenizers` package, its ids for hard texts. python tests/text/make_vectors.py"""
import json
from pathlib import Path

FILE = Path(__file__).with_name("vectors.json")
TRAIN = [
    "The river ran low in the lower valley, and the runners who'd run along the river said they'd never seen it lower.\n",
    "Low, lower, lowest: 1 10 100 1000 1,000 2024 2025.  Two  spaces,\tone tab,\r\na line break.\n\n\n",
    "Η γλώσσα και η γλώσσα. Язык и языки. 言語と言語。 언어와 언어. भाषा और भाषा. ภาษา ภาษา. اللغة واللغات. 🙂🙂🙂 👩‍👩‍👧 e\u0301 e\u0301\n",
    "aaaaaaaaaaaaaaaa aaaaaaaa aaaa aa aaa aaaaa abababab ababab abab bababa\n",
    "It's, I'm, you're, we've, she'll, he'd; IT'S, I'M; 'tis 'twas don't don't don't\n",
]
CASES = [
    "", " ", "  ", "\n", "a", "The lower river", "  leading", "trailing  ", "a  b   c", "\t\ttabs\t", "line\r\nbreak\n\n x",
    "'s 'S 't't's'll 'LL 'x",
    "don't we'Ve they’re", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababab", "1 12 123 1234 ½ Ⅷ ²", "γλώσσα Язык 言語 언어 भाषा ภาษา اللغة",
    "🙂👩‍👩‍👧🏳️‍🌈", "e\u0301\u0302 \u200b\u200d\ufeff\u00ad", "\u0000\u0001\u001c\u001f\u0085\u00a0\u1680\u2003\u2028\u202f\u3000x",
    "\U000323af\U00016130\U0001e5f0\u1c89\U0001ccf0", "\ue000\U000f0000\U0010ffff\ufffd\ufffe", "<|endoftext|>", "a<|endoftext|>b",
    " <|endoftext|> <|endoftext|><|endoftext|>\n", "<|endoftext", "<|<|endoftext|>|>", "x" * 70 + " " * 70 + "\n" * 3 + "lower" * 30,
]


def make():
    """-> what vectors.json holds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer, peer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    peer.train_from_iterator(TRAIN, trainers.BpeTrainer(vocab_size=340, min_frequency=2, special_tokens=["<|endoftext|>"],
                                                        show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    cases = [[text, peer.encode(text).ids] for text in CASES]
    return {"train": TRAIN, "vocab_size": 340, "tokenizer": json.loads(peer.to_str()), "cases": cases}


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), separators=(",", ":")) + "\n")
