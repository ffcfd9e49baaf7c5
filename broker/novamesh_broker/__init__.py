"""How nodes, coordinators and clients meet at a pool's MQTT broker: entered, read, kept in touch.

This module imports nothing: only `connection` needs the MQTT library, which comes with an extra.
"""
