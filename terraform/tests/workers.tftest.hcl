# Pools: one group each, made so that nothing but deployctl takes a busy node away, and one line to make it larger.

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

  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/sluice-test-worker" }
  }

  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 7 }
  }
}

override_data {
  target = data.terraform_remote_state.network
  values = {
    outputs = {
      private_subnet_ids = ["subnet-0a", "subnet-0b"]
      security_group_ids = { worker = "sg-0a" }
    }
  }
}

variables {
  env          = "test"
  region       = "us-east-1"
  account_id   = "123456789012"
  state_bucket = "sluice-test-state"
  release      = "0123456789ab"
  engines      = { database_url = "postgresql://h/db", broker_url = "redis://h/0" }
  pools = {
    default = { workers = 2 }
    spot    = { workers = 0, scale_to_zero = true, queues = ["cpu", "night"], spot_percent = 100, instance_types = ["c7i.xlarge", "c6i.xlarge"], drain_seconds = 86400, volume_gb = 200, container_credentials = true }
  }
}

run "each_pool_is_a_group" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  assert {
    condition     = output.groups == { default = "sluice-test-worker-default", spot = "sluice-test-worker-spot" }
    error_message = "One group for each pool, by its name."
  }
}

run "a_hundred_workers_is_one_line" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    pools   = { default = { max_workers = 200 } }
    workers = { default = 100 }
  }

  assert {
    condition     = output.groups == { default = "sluice-test-worker-default" }
    error_message = "The same group, larger."
  }
}

run "workers_refuses_more_workers_than_the_most" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    pools = { a = { workers = 7, max_workers = 3 } }
  }

  expect_failures = [var.pools]
}

run "workers_refuses_a_queue_of_two_pools" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    pools = { a = { queues = ["x", "y"] }, b = { queues = ["y"] } }
  }

  expect_failures = [var.pools]
}

run "workers_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    workers                  = { gpu = 1 }
    surge                    = 0
    secret_arns              = ["arn:aws:secretsmanager:us-east-1:123456789012:secret:*"]
    env                      = "production-eu-1"
    account_id               = "1234"
    permissions_boundary_arn = "arn:aws:iam::123456789012:role/x"
    boot_seconds             = 10000
  }

  expect_failures = [var.workers, var.surge, var.secret_arns, var.env, var.account_id, var.permissions_boundary_arn, var.boot_seconds]
}

run "the_schedulers_scale_a_pool_by_its_tags" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    pools = {
      default = { workers = 2, max_workers = 8, scaling = "sluice", queues = ["default", "reports"], cooldown_seconds = 120 }
      by-hand = { workers = 1, queues = ["slow"] }
    }
  }

  assert {
    condition     = length(aws_autoscaling_policy.backlog) == 0
    error_message = "AWS must not scale what the schedulers scale."
  }

  assert {
    condition     = local.scaling_tags["default"] == { Scaling = "sluice", MaxWorkers = "8", Slots = "4", Queues = "default reports", CooldownSeconds = "120", TargetWaitSeconds = "60" }
    error_message = "What the schedulers read of the pool."
  }
}

run "aws_scales_a_pool_by_its_backlog" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    pools = { default = { workers = 2, scaling = "target-tracking", backlog_per_slot = 0.8 } }
  }

  assert {
    condition     = aws_autoscaling_policy.backlog["default"].target_tracking_configuration[0].target_value == 0.8
    error_message = "The target is the pool's."
  }

  assert {
    condition     = { for d in aws_autoscaling_policy.backlog["default"].target_tracking_configuration[0].customized_metric_specification[0].metric_dimension : d.name => d.value } == { Env = "test", Pool = "default" }
    error_message = "The figure is the one that a scheduler publishes for this pool."
  }
}

run "workers_refuses_scaling_by_nobody_we_know" {
  command = plan

  module {
    source = "../stacks/workers"
  }

  variables {
    pools = { default = { scaling = "magic" } }
  }

  expect_failures = [var.pools]
}
