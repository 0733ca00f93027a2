"""Heads trained on a frozen backbone, which draft for it: Medusa, Hydra, EAGLE.

from jaxinfer import heads
model = model.attach(heads=heads.load("heads/smollm2-medusa"))
"""

from jaxinfer.heads.heads import Heads, HeadsConfig
from jaxinfer.heads.store import load, save

__all__ = ["Heads", "HeadsConfig", "load", "save"]
