"""One SymPy file per statement of the theory: each derives its statement and rejects a wrong variant.

Closed forms that the library's numerical tests compare with are plain functions here, for SymPy numbers or floats.
"""
