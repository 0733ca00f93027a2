"""Weights: formats, and the products of activations with them."""
