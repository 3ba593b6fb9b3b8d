"""`python -m jaxtrain` is the command `jaxtrain`."""

from jaxtrain.cli import main

main()
