"""Real Linux kernels as executors of scenarios.

``cases.py`` lists what there is to play, ``realise.py`` makes a machine of QEMU from a machine file, ``plan.py`` finds the cases
that can share a boot, ``session.py`` is a booted guest, ``steps.py`` what can be done in it, ``executor.py`` plays a plan.
``record.py`` keeps what came of it as data, ``store.py`` in files; ``agreement.py`` holds the model against that,
``differences.py`` names what is known to be otherwise, ``table.py`` makes one table of everything that vouches for the model.

What vouches for a cell of the matrix (``evidence.py``) is looked up in two indexes.  ``index.py`` makes that of the scenarios that
were played, ``recorded_index.py`` that of the recorded boots (``recorded.py``): ``seen.py`` collects what was done in which of the
``situations.py``, ``asked.py`` what must have been seen for a scenario.
"""
