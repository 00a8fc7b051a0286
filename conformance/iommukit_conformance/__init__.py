"""The conformance suite: a pytest plugin, shipped scenarios, the driver's contract, and wrong drivers that it must reject.

``pytest --pyargs iommukit_conformance --vendor acme`` runs it.  Importing this package imports nothing else.
"""
