"""A trained model as a folder that gives the same answer everywhere: `jaxtrain export`, and what reads its folders."""
