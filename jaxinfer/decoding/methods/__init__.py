"""Decode methods, one file each, and the registry that configs resolve names in.

A line for a method adds it: it is named as its file is, and public as `jaxinfer.X`, as all is that is imported as
itself. Lists of methods have them in the order of the lines.
"""

# isort: off
from jaxinfer.decoding.methods.greedy import Greedy as Greedy
from jaxinfer.decoding.methods.sample import Sample as Sample
from jaxinfer.decoding.methods.lookup import Lookup as Lookup
from jaxinfer.decoding.methods.suffix import Suffix as Suffix
from jaxinfer.decoding.methods.llma import LLMA as LLMA
from jaxinfer.decoding.methods.llma import references as references
from jaxinfer.decoding.methods.retrieval import Datastore as Datastore
from jaxinfer.decoding.methods.retrieval import Retrieval as Retrieval
from jaxinfer.decoding.methods.jacobi import Jacobi as Jacobi
from jaxinfer.decoding.methods.lookahead import Lookahead as Lookahead
from jaxinfer.decoding.methods.recycling import Recycling as Recycling
from jaxinfer.decoding.methods.speculative import Speculative as Speculative
from jaxinfer.decoding.methods.speculative_tree import SpeculativeTree as SpeculativeTree
from jaxinfer.decoding.methods.self_speculative import SelfSpeculative as SelfSpeculative
from jaxinfer.decoding.methods.cascade import Cascade as Cascade
from jaxinfer.decoding.methods.medusa import Medusa as Medusa
from jaxinfer.decoding.methods.eagle import Eagle as Eagle
from jaxinfer.decoding.methods.mtp import MTP as MTP
from jaxinfer.decoding.methods.adaptive import Adaptive as Adaptive
from jaxinfer.decoding.methods.fallback import Fallback as Fallback
from jaxinfer.decoding.methods.early_exit import EarlyExit as EarlyExit
from jaxinfer.decoding.methods.beam import Beam as Beam
from jaxinfer.decoding.methods.contrastive import Contrastive as Contrastive
from jaxinfer.decoding.methods.dola import Dola as Dola
# isort: on

from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.host.registry import Registry, by_file, extends

METHODS = Registry[type[DecodeMethod]]("decode method", by_file(vars(), DecodeMethod), extends(DecodeMethod))
