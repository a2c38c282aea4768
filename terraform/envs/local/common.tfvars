# The account of the local cloud.
env          = "local"
region       = "us-east-1"
account_id   = "123456789012"
state_bucket = "sluice-local-state-123456789012"
