"""What reads run folders and shows them to people: status, reports, comparisons, sweeps."""
