"""Working with torch and optax."""
