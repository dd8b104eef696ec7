"""``rawgrad bench report``: what result files say, as tables and pictures.

``gather.py``    which rows are shown: the newest of each, by the machine they were measured on
``goals.py``     what rawgrad must reach on the CPU
``pictures.py``  time over each peer's, roofline, GPU beside CPU, ladders of versions
``blocks.py``    headings, texts, tables and pictures, of which a report is made
``content.py``   the report
``others.py``    its part about records that are no rows: reading, checkpoints, growth, instructions
``pages.py``     these as Markdown, and as one HTML file that needs no other
``command.py``   the command
"""
