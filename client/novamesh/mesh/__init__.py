"""The mesh: peers that find and reach each other when no coordinator does. Extra `[p2p]`.

Nothing heavy is imported here: libp2p and trio come in when a Mesh is entered, and only then.
"""
