"""The command line: one file a family of verbs; tyro is imported only here.

A run, a build and a launch go on when nobody reads what they print. A verb that only prints ends with 141 then, as a
program in C does by SIGPIPE. A letter that the terminal's encoding lacks is printed as `?`.
"""
