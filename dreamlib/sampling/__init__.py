"""Which real images stand for a class: k-means, real batches, coresets, coverage."""
