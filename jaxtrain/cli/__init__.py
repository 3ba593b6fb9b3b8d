"""The command line: one file a family of verbs; tyro is imported only here.

Verbs that train, build or launch go on when the reader of their output goes away. A verb that only prints then ends
with code 141, as programs in C do by SIGPIPE. A character that the terminal's encoding lacks is printed as `?`.
"""
