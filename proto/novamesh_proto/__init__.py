"""The contract of novamesh: what nodes, clients and coordinators must agree on.

No sockets, no files, no clock, no torch: everything here can check a receipt offline, years later.
This module imports nothing, so that taking one module never loads the protobuf stubs.
"""
