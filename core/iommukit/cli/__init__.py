"""The command line, one file a command.

Everything but click is imported when a command runs, so that ``--help`` is quick.
"""
