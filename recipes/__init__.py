"""The programs that people run.

Each is a small module with a function ``run(options)``, listed in ``programs.py`` and reached from
the command line by ``rawgrad train NAME``.  What they share: ``options.py`` (what a user may set),
``networks.py`` (networks by name, so that a file of weights can be used without flags),
``training.py`` (data, loss, optimizer, saving and reporting), ``curves.py`` (pictures of
runs, and bands), ``pictures.py`` (pictures of what was read), ``watching.py`` (what is seen of a run
on the way), ``runs.py`` (a run read back from its folder), ``panels.py`` and ``page.py`` (what a
report shows, and the file that it is in).
"""
