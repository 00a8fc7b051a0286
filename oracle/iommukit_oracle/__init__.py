"""The judges: real Linux in QEMU, as recordings, and QEMU's emulated IOMMUs.

Recordings are held against the model by ``iommukit_oracle.replay``::

    from iommukit.vendors import VendorRegistry
    from iommukit_oracle.recording import load_recordings, shipped_recordings
    from iommukit_oracle.replay import replay

    registry = VendorRegistry.installed()
    for recording in load_recordings(shipped_recordings() / "6.12-s390.jsonl.xz"):
        for difference in replay(recording, registry).differences:
            print(difference)
"""
