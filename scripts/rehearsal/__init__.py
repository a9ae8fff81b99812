"""A rehearsal of scale full without its checkpoints: small stand-ins of every source, a hub on this machine that
serves them, and solved labs that fetch from it and then run without a network. `make rehearse` drives it.
"""
