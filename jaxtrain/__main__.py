"""`python -m jaxtrain` is the command `jaxtrain`."""

from jaxtrain.cli.main import main

main()
