"""Pure Python: what a policy is, how it mutates, who copies whom. No torch, no Ray; imports in milliseconds."""
