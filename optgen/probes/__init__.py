"""Probes: what a module must answer to inputs that every runtime can make, and how exactly."""
