# What the other stacks made. Word for word the same in stacks/control and stacks/workers (a test holds it): a module
# would take five variables in and hand four values out to save these lines, and hide which states a stack reads.

data "terraform_remote_state" "network" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/network.tfstate"
    region = var.region
  }
}

data "terraform_remote_state" "data" {
  count   = var.engines == null ? 1 : 0
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/data.tfstate"
    region = var.region
  }
}

locals {
  network = data.terraform_remote_state.network.outputs
  data    = one(data.terraform_remote_state.data[*].outputs)

  # Engines given by URL have no login to look up and no key of ours.
  engines = {
    database_url        = var.engines != null ? var.engines.database_url : local.data.database_url
    database_secret_arn = var.engines != null ? "" : local.data.database_secret_arn
    broker_url          = var.engines != null ? var.engines.broker_url : local.data.broker_url
    broker_secret_arn   = var.engines != null ? "" : local.data.broker_secret_arn
  }
  kms_key_arn = var.engines != null ? "" : local.data.kms_key_arn

  # By name, as the data stack makes them: so this stack can be planned beside it.
  buckets = {
    artifacts = "sluice-${var.env}-artifacts-${var.account_id}"
    storage   = "sluice-${var.env}-storage-${var.account_id}"
  }
}
