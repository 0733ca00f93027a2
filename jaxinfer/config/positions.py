"""Rotary positions, and the scalings by which they reach beyond the trained length."""

from dataclasses import dataclass
from typing import Literal

from jaxinfer.config.checks import one_of, positive, whole

ScalingKind = Literal["linear", "ntk", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeScaling:
    """A change of rotary frequencies, to reach beyond the trained length.

    - `linear` divides every frequency by `factor` (position interpolation, Chen et al. 2023).
    - `ntk` raises the base so that the lowest frequency is divided by `factor` and the highest is kept (NTK-aware
      scaling).
    - `dynamic` raises the base with the length of the text, from `original_max_positions` on (dynamic NTK scaling).
    - `llama3` divides the low frequencies only and blends between the two bands (Llama 3.1 reference code).
    - `yarn` blends by the turns that a dimension makes in the trained length, between `beta_slow` and `beta_fast`, and
      multiplies q and k by `magnitude` (YaRN, Peng et al. 2023, section 3).
    - `longrope` divides each frequency by its own entry of `divisors` and multiplies q and k by `magnitude` (LongRoPE,
      Ding et al. 2024); in texts of up to `original_max_positions`, by its entry of `short_divisors`, if there are any.

    Where the length of the text matters, it is that of the prompt, and after it that of the text up to the token: what
    is in the cache stays as it was turned.
    """

    kind: ScalingKind
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: the edges of the blend are whole dimensions
    magnitude: float = 1.0
    divisors: tuple[float, ...] = ()
    short_divisors: tuple[float, ...] = ()

    def __post_init__(self):
        one_of(ScalingKind, kind=self.kind)
        whole(1, original_max_positions=self.original_max_positions)
        positive(factor=self.factor, beta_fast=self.beta_fast, beta_slow=self.beta_slow, magnitude=self.magnitude)
        positive(low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must be above low_freq_factor={self.low_freq_factor}"
            )
        for divisor in (*self.divisors, *self.short_divisors):
            positive(divisor=divisor)

    @property
    def follows_length(self) -> bool:
        """Tell whether the frequencies depend on how long the text is."""
        return self.kind == "dynamic" or bool(self.short_divisors)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (RoFormer, Su et al. 2021).

    Half layout: dimension i turns with i + width/2; interleaved: with its neighbour. A head's dimensions from `width`
    on do not turn (partial rotary, GPT-NeoX).
    """

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    width: int | None = None  # None: the whole head
    interleaved: bool = False

    def __post_init__(self):
        positive(theta=self.theta)
        whole(1, width=self.width)
        if self.scaling and self.scaling.kind == "yarn" and self.theta <= 1:
            raise ValueError(f"theta={self.theta} must be above 1 for yarn")
