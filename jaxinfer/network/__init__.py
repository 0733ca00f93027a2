"""The Transformer, its form layer by layer, the count of its parameters, and the small networks that draft for it."""
