"""Shows runs: their state, reports, comparisons, sweeps, lineage and notebooks. It reads folders, and never trains."""
