# Put your own account's 12 digits in both lines before the first plan.
env          = "prod"
region       = "us-east-1"
account_id   = "000000000000"
state_bucket = "sluice-prod-state-000000000000"
