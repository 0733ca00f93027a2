"""Cache policies, one file each, and the registry that configs resolve names in."""

from jaxinfer.cache.dense import Dense
from jaxinfer.cache.policy import CachePolicy
from jaxinfer.cache.store import Cache, Store
from jaxinfer.cache.window import Window

POLICIES: dict[str, type] = {"dense": Dense, "window": Window}

__all__ = ["POLICIES", "Cache", "CachePolicy", "Dense", "Store", "Window"]
