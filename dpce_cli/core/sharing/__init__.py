"""Models that come from elsewhere or go elsewhere."""
