"""Transforms of audio."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import PositiveInt, Range
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform


@dataclass(frozen=True)
class LogMel(Transform):
    """Log-mel spectrogram of the audio in `field`: float32[samples] at `rate` Hz to float32[frames, mels].

    Frames are Hann windows of `window` samples, `hop` apart, without padding. Filters are triangles whose corners are
    evenly spaced on the mel scale 2595·log10(1 + f/700) (O'Shaughnessy 1987) from 0 Hz to half the rate. Raises
    ConfigError for another rank and for audio shorter than a window.
    """

    rate: PositiveInt
    mels: PositiveInt = 80
    window: Annotated[int, Range(at_least=2)] = 400
    hop: PositiveInt = 160
    field: str = "audio"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        samples = self.numbers_of(example, self.field)
        if samples.ndim != 1 or len(samples) < self.window:
            raise ConfigError(f"LogMel: {self.field!r} must be [samples], {self.window} or more; got {samples.shape}")
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.hop]
        power = np.abs(np.fft.rfft(frames * np.hanning(self.window + 1)[:-1])) ** 2
        return {**example, self.field: np.log(power @ _mel_filters(self) + 1e-10).astype(np.float32)}


@lru_cache(maxsize=16)
def _mel_filters(spec: LogMel) -> np.ndarray:
    """The weight of each frequency in each mel band, float64[window // 2 + 1, mels]."""
    top = 2595 * np.log10(1 + spec.rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, spec.mels + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(spec.window, 1 / spec.rate)[:, None]
    rising = (hertz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling))
