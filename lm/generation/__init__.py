"""Text out of a trained model."""

from lm.generation.generate import fit_window as fit_window
from lm.generation.generate import generate as generate
from lm.generation.generate import generate_text as generate_text
from lm.generation.generate import stream_text as stream_text
from lm.generation.sampling import SamplingConfig as SamplingConfig
from lm.generation.sampling import next_token_probabilities as next_token_probabilities
from lm.generation.sampling import sample_next as sample_next
