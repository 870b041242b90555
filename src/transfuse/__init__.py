"""Knowledge transfer between neural networks, with the evidence.

Importing this package loads neither torch nor any host framework: methods live in
``transfuse.methods.<family>.<id>`` and are imported by those who use them.
"""

__version__ = "0.1.0"
