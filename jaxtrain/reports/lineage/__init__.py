"""`jaxtrain lineage`: what a run, dataset, bundle or sweep was made from, and what was made from it."""
