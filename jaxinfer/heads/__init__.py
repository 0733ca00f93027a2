"""Heads trained on a frozen backbone, which draft for it: Medusa, Hydra, EAGLE.

from jaxinfer import heads
model = model.attach(heads=heads.load("heads/smollm2-medusa"))
"""

from jaxinfer.heads.store import load, save
from jaxinfer.network.heads import Heads, HeadsConfig

__all__ = ["Heads", "HeadsConfig", "load", "save"]
