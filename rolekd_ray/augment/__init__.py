"""Torch: from a policy and a batch of images to one role's view. Every view is a pure function of its sample."""
