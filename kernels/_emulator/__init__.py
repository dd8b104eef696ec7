"""The simulated GPU: its arrays (:mod:`.arrays`), memory (:mod:`.memory`) and streams (:mod:`.streams`).

Loaded only where the backend ``emulated`` is active.
"""
