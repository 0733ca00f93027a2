"""Heads trained on a frozen backbone, which draft for it: Medusa, Hydra, EAGLE."""
