"""Real Linux kernels as executors of scenarios.

``realise.py`` makes a machine of QEMU from a machine file, ``plan.py`` finds the scenarios that can share a boot, ``session.py`` is a
booted guest, ``steps.py`` what can be done in it, ``executor.py`` plays a plan; ``record.py`` keeps what came of it as data, and
``agreement.py`` holds the model against that.
"""
