# What is off until somebody wants it: warehouse, replication, and a role for CI.

mock_provider "aws" {
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
    defaults = { arn = "arn:aws:iam::123456789012:role/x" }
  }

  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com" }
  }

  mock_resource "aws_dms_replication_instance" {
    defaults = { replication_instance_arn = "arn:aws:dms:us-east-1:123456789012:rep:R" }
  }

  mock_resource "aws_dms_endpoint" {
    defaults = { endpoint_arn = "arn:aws:dms:us-east-1:123456789012:endpoint:E" }
  }

  mock_resource "aws_db_instance" {
    defaults = { master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:db" }] }
  }
}

variables {
  env            = "test"
  region         = "us-east-1"
  account_id     = "123456789012"
  state_bucket   = "sluice-test-state"
  name           = "sluice-test-replication"
  vpc_id         = "vpc-1"
  subnet_ids     = ["subnet-0a", "subnet-0b"]
  kms_key_arn    = "arn:aws:kms:us-east-1:123456789012:key/k"
  sources        = { shop = { database = "shop", secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:shop", tables = ["public.orders", "audit.%"] } }
  target         = { secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wh", security_group_id = "sg-0h" }
  instance_class = "dms.t3.medium"
  storage_gb     = 50
  multi_az       = false
  account_role   = true

  # for the role of CI
  buckets           = { state = "s", artifacts = "a" }
  issuer_url        = "https://token.actions.githubusercontent.com"
  issuer_arn        = null
  subjects          = ["repo:acme/pipelines:ref:refs/heads/main"]
  apply_policy_arns = []
}

run "no_warehouse_unless_asked_for" {
  command = plan

  override_data {
    target = data.terraform_remote_state.network
    values = {
      outputs = { data_subnet_ids = ["subnet-2a", "subnet-2b"], private_subnet_ids = ["subnet-0a", "subnet-0b"], vpc_id = "vpc-1", security_group_ids = { worker = "sg-0a" } }
    }
  }

  override_data {
    target = data.terraform_remote_state.data
    values = {
      outputs = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/k" }
    }
  }

  module {
    source = "../stacks/warehouse"
  }

  assert {
    condition     = output.url == null && length(module.database) == 0
    error_message = "Nothing is made."
  }
}

run "a_warehouse_for_workers_only" {
  command = plan

  override_data {
    target = data.terraform_remote_state.network
    values = {
      outputs = { data_subnet_ids = ["subnet-2a", "subnet-2b"], private_subnet_ids = ["subnet-0a", "subnet-0b"], vpc_id = "vpc-1", security_group_ids = { worker = "sg-0a" } }
    }
  }

  override_data {
    target = data.terraform_remote_state.data
    values = {
      outputs = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/k" }
    }
  }

  module {
    source = "../stacks/warehouse"
  }

  variables {
    warehouse = {}
  }

  assert {
    condition     = length(module.database) == 1 && aws_vpc_security_group_ingress_rule.workers[0].referenced_security_group_id == "sg-0a"
    error_message = "Workers come in, by their group."
  }
}

run "no_replication_unless_asked_for" {
  command = plan

  override_data {
    target = data.terraform_remote_state.network
    values = {
      outputs = { data_subnet_ids = ["subnet-2a", "subnet-2b"], private_subnet_ids = ["subnet-0a", "subnet-0b"], vpc_id = "vpc-1", security_group_ids = { worker = "sg-0a" } }
    }
  }

  override_data {
    target = data.terraform_remote_state.data
    values = {
      outputs = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/k" }
    }
  }

  override_data {
    target = data.terraform_remote_state.warehouse
    values = {
      outputs = { security_group_id = null }
    }
  }

  module {
    source = "../stacks/replication"
  }

  variables {
    sources = {}
  }

  assert {
    condition     = output.task_arns == null
    error_message = "Nothing is made."
  }
}

run "sources_without_a_target_are_refused" {
  command = plan

  override_data {
    target = data.terraform_remote_state.network
    values = {
      outputs = { data_subnet_ids = ["subnet-2a", "subnet-2b"], private_subnet_ids = ["subnet-0a", "subnet-0b"], vpc_id = "vpc-1", security_group_ids = { worker = "sg-0a" } }
    }
  }

  override_data {
    target = data.terraform_remote_state.data
    values = {
      outputs = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/k" }
    }
  }

  override_data {
    target = data.terraform_remote_state.warehouse
    values = {
      outputs = { security_group_id = null }
    }
  }

  module {
    source = "../stacks/replication"
  }

  expect_failures = [var.target_secret_arn]
}

run "a_source_is_a_task" {
  command = apply

  module {
    source = "../modules/replication"
  }

  assert {
    condition     = [for rule in jsondecode(aws_dms_replication_task.this["shop"].table_mappings).rules : rule["object-locator"]] == [{ schema-name = "public", table-name = "orders" }, { schema-name = "audit", table-name = "%" }]
    error_message = "The tables that were named."
  }

  assert {
    condition     = aws_dms_endpoint.target.ssl_mode == "require" && aws_dms_endpoint.source["shop"].ssl_mode == "require" && aws_dms_endpoint.target.password == null
    error_message = "TLS, and logins only in secrets."
  }

  assert {
    condition     = !aws_dms_replication_instance.this.publicly_accessible
    error_message = "Not from the internet."
  }
}

run "ci_comes_from_one_repository" {
  command = plan

  module {
    source = "../modules/ci-role"
  }

  assert {
    condition     = aws_iam_role.ci.max_session_duration == 3600 && length(aws_iam_role_policy_attachment.apply) == 0
    error_message = "An hour, and no applying unless policies say what."
  }

  assert {
    condition     = anytrue([for c in data.aws_iam_policy_document.assume.statement[0].condition : c.variable == "token.actions.githubusercontent.com:sub" && contains(c.values, "repo:acme/pipelines:ref:refs/heads/main")])
    error_message = "Only the jobs that were named."
  }

  assert {
    condition     = !anytrue([for s in data.aws_iam_policy_document.ci.statement : (contains(s.resources, "*") && s.sid != "DrawPassword") || anytrue([for a in s.actions : strcontains(a, "*")])])
    error_message = "No wildcards."
  }
}

run "replication_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/replication"
  }

  variables {
    sources        = { shop = { database = "shop", secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:shop", engine = "sqlite" } }
    target         = { secret_arn = "", security_group_id = "sg-0h" }
    instance_class = "db.t3.medium"
  }

  expect_failures = [var.sources, var.target, var.instance_class]
}

run "ci_role_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/ci-role"
  }

  variables {
    subjects   = ["repo:*"]
    issuer_url = "http://ci.example.com"
  }

  expect_failures = [var.subjects, var.issuer_url]
}
