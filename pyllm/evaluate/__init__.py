"""How good a model is: metrics with confidence intervals."""
from pyllm.evaluate.metrics import Score, accuracy, bootstrap, calibration, f1, matthews, mean, proportion
from pyllm.evaluate.text_metrics import bits_per_byte, bleu, chrf, exact_match, perplexity, rouge, ter, token_f1

__all__ = ["Score", "accuracy", "bits_per_byte", "bleu", "bootstrap", "calibration", "chrf", "exact_match", "f1", "matthews", "mean",
           "perplexity", "proportion", "rouge", "ter", "token_f1"]
