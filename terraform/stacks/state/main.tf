# The bucket with every stack's state, this one's too, and who may reach it from outside. `deployctl env create` makes
# the bucket, because a state needs a place before there is one; this stack takes it over and keeps it as it should be.

import {
  to = module.bucket.aws_s3_bucket.this
  id = var.state_bucket
}

module "bucket" {
  source           = "../../modules/bucket"
  name             = var.state_bucket
  kms_key_arn      = null # a key of ours would have to be in a state before there is one
  force_destroy    = false
  old_version_days = 90 # a state that was spoiled can be had back
}

module "ci" {
  source                   = "../../modules/ci-role"
  count                    = var.ci != null ? 1 : 0
  env                      = var.env
  region                   = var.region
  account_id               = var.account_id
  buckets                  = { state = var.state_bucket, artifacts = "sluice-${var.env}-artifacts-${var.account_id}" }
  issuer_url               = var.ci.issuer_url
  issuer_arn               = var.ci.issuer_arn
  subjects                 = var.ci.subjects
  apply_policy_arns        = var.ci.apply_policy_arns
  permissions_boundary_arn = var.permissions_boundary_arn
}
