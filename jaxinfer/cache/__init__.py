"""Cache policies, one file each, and the registry that configs resolve names in.

A line for a policy adds it: it is named as its file is, and public as `jaxinfer.X`, as all is that is imported as
itself. Lists of policies have them in the order of the lines.
"""

# isort: off
from jaxinfer.cache.store import Cache as Cache
from jaxinfer.cache.contract import CachePolicy as CachePolicy
from jaxinfer.cache.dense import Dense as Dense
from jaxinfer.cache.window import Window as Window
from jaxinfer.cache.quantized import Quantized as Quantized
from jaxinfer.cache.paged import Paged as Paged
# isort: on

from jaxinfer.host.registry import Registry, by_file, extends

POLICIES = Registry[type[CachePolicy]]("cache policy", by_file(vars(), CachePolicy), extends(CachePolicy))
