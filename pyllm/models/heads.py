"""Heads over any family's trunk. HEADS: the end of an architecture's name in config.json -> the model that composes the two."""
from pyllm.autograd import ops
from pyllm.models.base import Headed
from pyllm.nn import Linear


class Head(Headed):
    """trunk: a family's, in the form that this head needs; KIND: its key in the trunk's HEADS, which names the layer."""

    KIND, SUFFIX = "", ""

    def __init__(self, trunk, layer):
        super().__init__(trunk)
        setattr(self, trunk.HEADS[self.KIND], layer)

    architecture = property(lambda self: self.config.base_architecture.removesuffix("Model") + self.SUFFIX)

    @property
    def score_layer(self):
        return vars(self)[self.trunk.HEADS[self.KIND]]

    def hidden(self, tokens, segments=None, rng=None, **options):
        """-> (B, T, C), with what dropout there is before the head."""
        hidden = self.trunk(tokens, segments, rng=rng, **options)
        return ops.dropout(hidden, self.config.head_dropout, rng and rng.fold("head"))


class SequenceClassifier(Head):
    """tokens:(B, T) -> logits (B, labels), from each row's last token, or what the family pools. With one label: a reward model.

    Over an encoder-decoder, here and below: the decoder's states over the same tokens, see seq2seq.PairTrunk.
    """

    KIND, SUFFIX = "sequence", "ForSequenceClassification"

    def __init__(self, family, config):
        trunk = family.TRUNK.for_sequences(config)
        super().__init__(trunk, trunk.sequence_layer(config.labels()))

    def __call__(self, tokens, segments=None, rng=None, **options):
        hidden = self.trunk(tokens, segments, rng=rng, **options)
        return self.trunk.scores(self.score_layer, self.trunk.pooled(hidden, tokens, segments), rng)


class TokenClassifier(Head):
    """tokens:(B, T) -> logits (B, T, labels)."""

    KIND, SUFFIX = "token", "ForTokenClassification"

    def __init__(self, family, config):
        super().__init__(family.TRUNK.for_tokens(config), _linear(config, config.labels()))

    def __call__(self, tokens, segments=None, rng=None, **options):
        return self.score_layer(self.hidden(tokens, segments, rng, **options))


class SpanFinder(Head):
    """tokens:(B, T) -> logits (B, T, 2): where an answer begins and where it ends."""

    KIND, SUFFIX = "span", "ForQuestionAnswering"

    def __init__(self, family, config):
        super().__init__(family.TRUNK(config), _linear(config, 2))

    def __call__(self, tokens, segments=None, rng=None, **options):
        return self.score_layer(self.trunk(tokens, segments, rng=rng, **options))


class ValueModel(TokenClassifier):
    """tokens:(B, T) -> (B, T): the return expected at each token."""

    KIND, SUFFIX = "value", "ForValue"  # no library's name: checkpoints of ours alone

    def __init__(self, family, config):
        Head.__init__(self, family.TRUNK(config), _linear(config, 1))

    def __call__(self, tokens, segments=None, rng=None, **options):
        values = super().__call__(tokens, segments, rng, **options)
        return values.reshape(*values.shape[:2])


def _linear(config, outputs):
    return Linear(config.size("width"), outputs, True, config.init_std)


HEADS = {head.SUFFIX: head for head in (SequenceClassifier, TokenClassifier, SpanFinder, ValueModel)}
