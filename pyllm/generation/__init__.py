"""Text from a model: cached decoding of ragged rows, sampling, streaming."""
from pyllm.generation.decode import Decoder
from pyllm.generation.generate import Generation, generate, stream
from pyllm.generation.sampling import Sampling

__all__ = ["Decoder", "Generation", "Sampling", "generate", "stream"]
