"""Transforms of audio."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

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

    def traced(self, fields: Example) -> Example:
        """By a matrix of sines and cosines in float64, as float32 loses the quiet frequencies beside a loud one."""
        import jax  # not at the top: reading data needs no jax
        import jax.numpy as jnp

        samples_BS = self.field_of(fields, self.field)
        if samples_BS.ndim != 2 or samples_BS.shape[1] < self.window:
            raise ConfigError(f"LogMel: {self.field!r} must be [samples], {self.window} or more")
        starts_F1 = np.arange(0, samples_BS.shape[1] - self.window + 1, self.hop)[:, None]
        angles_WK = 2 * np.pi / self.window * np.outer(np.arange(self.window), np.arange(self.window // 2 + 1))
        window_W1 = np.hanning(self.window + 1)[:-1, None]
        frames_BFW = samples_BS.astype(jnp.float32)[:, starts_F1 + np.arange(self.window)]
        with jax.enable_x64(True):
            frames_BFW = frames_BFW.astype(jnp.float64)
            real_BFK, other_BFK = (frames_BFW @ (window_W1 * turn(angles_WK)) for turn in (np.cos, np.sin))
            log_BFM = jnp.log((real_BFK**2 + other_BFK**2) @ _mel_filters(self) + 1e-10).astype(jnp.float32)
        return {**fields, self.field: log_BFM}

    def raw_inputs(self, kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> Mapping[str, Mapping[str, Any]]:
        """Samples at this rate. Raises ConfigError for sounds of different lengths."""
        if self.field not in kinds:
            return {}
        shape = kinds[self.field][1]
        if len(shape) != 1 or shape[0] < 1:
            raise ConfigError(f"LogMel: {self.field!r} has to be of one length to be exported, but is {list(shape)}")
        return {self.field: {"kind": "audio", "samples": shape[0], "rate": self.rate}}


@lru_cache(maxsize=16)
def _mel_filters(spec: LogMel) -> np.ndarray:
    """The weight of each frequency in each mel band, float64[window // 2 + 1, mels]."""
    top = 2595 * np.log10(1 + spec.rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, spec.mels + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(spec.window, 1 / spec.rate)[:, None]
    rising = (hertz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling))
