"""The integrator that alternates MD and jumps in one Context, and its reporter."""
