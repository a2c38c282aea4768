"""How many nodes a pool should have: the policy (pure), and its replay on a recorded load."""
