"""`jaxtrain replay`: a step of a run once more, and why it came out as it did."""
