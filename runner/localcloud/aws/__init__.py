"""The AWS of the local cloud: moto's server, taught to act on what it only stores. One service a file.

The patches reach into moto's internals, so moto is pinned to one version in `pyproject.toml`.
"""
