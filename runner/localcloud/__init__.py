"""An AWS on one machine: moto's API, instance metadata, nodes as processes, real PostgreSQL and Valkey."""
