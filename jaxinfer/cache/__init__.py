"""Cache policies, one file each, and the registry that configs resolve names in."""

from jaxinfer.cache.dense import Dense
from jaxinfer.cache.paged import Paged
from jaxinfer.cache.policy import CachePolicy
from jaxinfer.cache.quantized import Quantized
from jaxinfer.cache.store import Cache, Store
from jaxinfer.cache.window import Window

POLICIES: dict[str, type] = {"dense": Dense, "window": Window, "quantized": Quantized, "paged": Paged}

__all__ = ["POLICIES", "Cache", "CachePolicy", "Dense", "Paged", "Quantized", "Store", "Window"]
