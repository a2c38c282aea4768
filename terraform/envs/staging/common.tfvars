# Put your own account's 12 digits in both lines before the first plan.
env          = "staging"
region       = "us-east-1"
account_id   = "000000000000"
state_bucket = "sluice-staging-state-000000000000"
