"""A model: a propagator with all one has to know to use it."""
