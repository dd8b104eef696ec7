"""The simulated GPU: arrays (:mod:`.arrays`, :mod:`.module`), memory (:mod:`.memory`), streams (:mod:`.streams`).

Loaded only where the backend ``emulated`` is active.
"""
