"""`jaxtrain compare` and `jaxtrain diff`: what runs differ in, from which step on, and whether one is better."""
