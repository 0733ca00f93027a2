"""The network's layers as Flax modules, and the formulations of their products."""
