"""`jaxtrain replay`: runs a step of a run again, and explains its result."""
