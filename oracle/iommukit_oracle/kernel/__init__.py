"""Real Linux kernels as executors of scenarios.

``realise.py`` makes a machine of QEMU from a machine file, ``plan.py`` finds the scenarios that can share a boot, ``executor.py`` boots
and carries out their steps; ``record.py`` keeps what came of it as data, ``agreement.py`` holds the model against that.
"""
