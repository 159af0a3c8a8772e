"""Who proposes: one module an agent, and the pure helpers they share."""
