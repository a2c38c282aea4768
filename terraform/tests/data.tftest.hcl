# Database, broker and buckets: encrypted, TLS only, and hard to lose.

mock_provider "aws" {
  mock_data "aws_secretsmanager_random_password" {
    defaults = { random_password = "0123456789abcdef0123456789abcdef0123456789abcdef" }
  }

  mock_data "aws_ssm_parameter" {
    defaults = { insecure_value = "ami-0123456789abcdef0" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/monitoring" }
  }

  mock_resource "aws_db_instance" {
    defaults = { master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:db" }] }
  }

  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::sluice-test" }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/k" }
  }
}

variables {
  name                = "sluice-test"
  instance_class      = "db.t4g.medium"
  storage_gb          = 50
  max_storage_gb      = 200
  multi_az            = true
  backup_days         = 7
  deletion_protection = true
  subnet_ids          = ["subnet-2a", "subnet-2b"]
  security_group_id   = "sg-0d"
  kms_key_arn         = "arn:aws:kms:us-east-1:123456789012:key/k"
  node_type           = "cache.t4g.small"
  replicas            = 1
  force_destroy       = false
}

run "what_the_database_promises" {
  command = plan

  module {
    source = "../modules/database"
  }

  assert {
    condition     = aws_db_instance.this.multi_az && aws_db_instance.this.storage_encrypted && !aws_db_instance.this.publicly_accessible
    error_message = "A standby, encrypted, not from the internet."
  }

  assert {
    condition     = aws_db_instance.this.manage_master_user_password && aws_db_instance.this.password == null
    error_message = "AWS makes and keeps the password."
  }

  assert {
    condition     = one([for p in aws_db_parameter_group.this.parameter : p.value if p.name == "rds.force_ssl"]) == "1"
    error_message = "TLS is forced."
  }

  assert {
    condition     = aws_db_instance.this.backup_retention_period == 7 && aws_db_instance.this.performance_insights_enabled && aws_db_instance.this.monitoring_interval == 60
    error_message = "Backups, and figures to look into."
  }

  assert {
    condition     = aws_db_instance.this.deletion_protection && !aws_db_instance.this.skip_final_snapshot
    error_message = "Protected, and a last snapshot if it goes all the same."
  }
}

run "what_the_broker_promises" {
  command = plan

  module {
    source = "../modules/broker"
  }

  assert {
    condition     = aws_elasticache_replication_group.this.transit_encryption_enabled && aws_elasticache_replication_group.this.at_rest_encryption_enabled
    error_message = "TLS, and encrypted where it is kept."
  }

  assert {
    condition     = aws_elasticache_replication_group.this.automatic_failover_enabled && aws_elasticache_replication_group.this.multi_az_enabled && aws_elasticache_replication_group.this.num_cache_clusters == 2
    error_message = "A replica takes over."
  }

  assert {
    condition     = one([for p in aws_elasticache_parameter_group.this.parameter : p.value if p.name == "maxmemory-policy"]) == "noeviction"
    error_message = "A full queue refuses; it does not forget."
  }

  assert {
    condition     = aws_secretsmanager_secret.token.kms_key_id == var.kms_key_arn
    error_message = "The token is in a secret of our key."
  }
}

run "what_a_bucket_promises" {
  command = plan

  module {
    source = "../modules/bucket"
  }

  variables {
    expire_days     = { "logs/" = 90 }
    infrequent_days = { "logs/" = 30 }
  }

  assert {
    condition     = aws_s3_bucket_public_access_block.this.block_public_acls && aws_s3_bucket_public_access_block.this.block_public_policy && aws_s3_bucket_public_access_block.this.ignore_public_acls && aws_s3_bucket_public_access_block.this.restrict_public_buckets
    error_message = "Private."
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "What was overwritten can be had back."
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.id] == ["leftovers", "infrequent-logs", "expire-logs"]
    error_message = "Leftovers go, logs get cheaper, then go."
  }
}

run "logs_of_aws_are_taken_from_this_account_only" {
  command = apply

  module {
    source = "../modules/bucket"
  }

  variables {
    kms_key_arn = null
    log_writers = { "s3/" = "logging.s3.amazonaws.com" }
    account_id  = "123456789012"
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.this.policy).Statement[1].Condition.StringEquals["aws:SourceAccount"] == "123456789012"
    error_message = "Nobody else's logs."
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.this.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false" && jsondecode(aws_s3_bucket_policy.this.policy).Statement[0].Effect == "Deny"
    error_message = "TLS only."
  }
}

run "database_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/database"
  }

  variables {
    instance_class = "cache.t4g.small"
    max_storage_gb = 40
    backup_days    = 0
  }

  expect_failures = [var.instance_class, var.max_storage_gb, var.backup_days]
}

run "broker_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/broker"
  }

  variables {
    node_type = "db.t4g.small"
    replicas  = 6
  }

  expect_failures = [var.node_type, var.replicas]
}

run "bucket_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/bucket"
  }

  variables {
    name            = "Sluice"
    expire_days     = { "logs/" = 0.5 }
    infrequent_days = { "logs/" = 7 }
    log_writers     = { "s3/" = "logging.s3.amazonaws.com" }
  }

  expect_failures = [var.name, var.expire_days, var.infrequent_days, var.account_id]
}
