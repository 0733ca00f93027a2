"""The runtime: a request, the step and its loop, a model on its devices, compiled programs, and what comes out."""
