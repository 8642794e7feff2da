"""Text out of a trained model."""

from lm.generation.decoder import Decoder as Decoder
from lm.generation.generate import Token as Token
from lm.generation.generate import fit_window as fit_window
from lm.generation.generate import generate as generate
from lm.generation.sampling import SamplingConfig as SamplingConfig
from lm.generation.sampling import draw as draw
from lm.generation.sampling import next_token_probabilities as next_token_probabilities
from lm.generation.text import Completion as Completion
from lm.generation.text import complete as complete
from lm.generation.text import generate_text as generate_text
from lm.generation.text import stream_text as stream_text
