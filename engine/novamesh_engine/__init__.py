"""The machine: tokens in, tokens out. Synchronous; it knows no network, no job and no user.

Import `novamesh_engine.engine` to run a model and `novamesh_engine.request` for the values that go
in and come out. Importing this package alone starts no torch.
"""
