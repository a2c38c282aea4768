# A group of nodes: only IMDSv2, hooks on both ends, nothing that takes a busy node away.

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

variables {
  name                  = "sluice-test-worker"
  env                   = "test"
  region                = "us-east-1"
  role                  = "worker"
  pool                  = "default"
  queues                = ["default"]
  engines               = { database_url = "postgresql://h/db", database_secret_arn = "", broker_url = "redis://h/0", broker_secret_arn = "" }
  buckets               = { artifacts = "a", storage = "s" }
  min_size              = 2
  max_size              = 5
  subnet_ids            = ["subnet-0a", "subnet-0b"]
  security_group_id     = "sg-0a"
  instance_profile_name = "sluice-test-worker"
  instance_profile_arn  = "arn:aws:iam::123456789012:instance-profile/sluice-test-worker"
  instance_types        = ["m7i.large", "m6i.large"]
  release               = "0123456789ab"
  boot_seconds          = 600
  drain_seconds         = 86400
  protect_from_scale_in = true
}

run "what_a_group_promises" {
  command = plan

  module {
    source = "../modules/node-group"
  }

  assert {
    condition     = { for name, hook in aws_autoscaling_lifecycle_hook.this : name => hook.lifecycle_transition } == { launch = "autoscaling:EC2_INSTANCE_LAUNCHING", terminate = "autoscaling:EC2_INSTANCE_TERMINATING" }
    error_message = "A hook on either end."
  }

  assert {
    condition     = alltrue([for hook in aws_autoscaling_lifecycle_hook.this : hook.default_result == "ABANDON"])
    error_message = "A hook nobody answers gives the instance up."
  }

  assert {
    condition     = length(aws_autoscaling_group.this.initial_lifecycle_hook) == 2
    error_message = "The first instances do not slip past the hooks."
  }

  assert {
    condition     = aws_autoscaling_lifecycle_hook.this["terminate"].heartbeat_timeout * 100 >= 86400
    error_message = "The hook outlasts the drain: AWS ends it after 100 timeouts."
  }

  assert {
    condition     = aws_launch_template.this.metadata_options[0].http_tokens == "required" && aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 1 && aws_launch_template.this.metadata_options[0].instance_metadata_tags == "enabled"
    error_message = "IMDSv2 only, not from containers, with the instance's tags."
  }

  assert {
    condition     = aws_launch_template.this.key_name == null
    error_message = "No SSH key."
  }

  assert {
    condition     = aws_launch_template.this.block_device_mappings[0].ebs[0].encrypted == "true"
    error_message = "The disk is encrypted."
  }

  assert {
    condition     = contains(aws_autoscaling_group.this.suspended_processes, "AZRebalance")
    error_message = "AWS does not take busy instances down for a better spread."
  }

  assert {
    condition     = aws_autoscaling_group.this.protect_from_scale_in
    error_message = "Only deployctl picks which node goes."
  }

  assert {
    condition     = one([for tag in aws_autoscaling_group.this.tag : tag.propagate_at_launch if tag.key == "Release" && tag.value == "0123456789ab"])
    error_message = "A new instance carries the release."
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 100
    error_message = "No spot instance unless asked for."
  }

  assert {
    condition     = [for override in aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].override : override.instance_type] == ["m7i.large", "m6i.large"]
    error_message = "Types in the order given."
  }
}

run "the_template_is_pinned_by_number" {
  command = apply

  module {
    source = "../modules/node-group"
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].launch_template_specification[0].version == "7"
    error_message = "A rollback can name the version."
  }
}

run "spot_and_containers_where_asked_for" {
  command = plan

  module {
    source = "../modules/node-group"
  }

  variables {
    spot_percent          = 60
    container_credentials = true
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 40
    error_message = "The rest is on demand."
  }

  assert {
    condition     = aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 2
    error_message = "One more hop reaches into a container."
  }
}

run "a_profile_of_another_name_is_refused" {
  command = plan

  module {
    source = "../modules/node-group"
  }

  variables {
    instance_profile_name = "other"
  }

  expect_failures = [aws_autoscaling_group.this]
}

run "a_role_is_bounded_and_its_own" {
  command = plan

  module {
    source = "../modules/node-role"
  }

  variables {
    account_id               = "123456789012"
    own_groups               = "sluice-test-worker-*"
    secret_arns              = []
    kms_key_arn              = ""
    permissions_boundary_arn = "arn:aws:iam::123456789012:policy/boundary"
  }

  assert {
    condition     = aws_iam_role.node.permissions_boundary == "arn:aws:iam::123456789012:policy/boundary"
    error_message = "The boundary bounds it."
  }

  assert {
    condition     = !anytrue([for s in data.aws_iam_policy_document.node.statement : anytrue([for a in s.actions : strcontains(a, "*")])])
    error_message = "No wildcard actions."
  }

  assert {
    condition     = alltrue([for s in data.aws_iam_policy_document.node.statement : !contains(s.resources, "*") || contains(["SeeOwnLifecycle", "SessionManager", "ReportFigures"], s.sid)])
    error_message = "Every resource by ARN where AWS has one."
  }

  assert {
    condition = length(setsubtract([
      "autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLifecycleHooks",
      "autoscaling:RecordLifecycleActionHeartbeat", "autoscaling:CompleteLifecycleAction",
      "autoscaling:TerminateInstanceInAutoScalingGroup", "ec2:CreateTags",
    ], flatten(data.aws_iam_policy_document.node.statement[*].actions))) == 0
    error_message = "All that the boot script and the agent ask of AWS."
  }

  assert {
    condition     = alltrue([for s in data.aws_iam_policy_document.node.statement : contains(s.condition[*].variable, "aws:TagKeys") if contains(s.actions, "ec2:CreateTags")])
    error_message = "No other tag than the one that tells of the boot: a node cannot choose its own release."
  }
}

run "node_group_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/node-group"
  }

  variables {
    role           = "database"
    max_size       = 2
    instance_types = ["m7i.large", "m7i.large"]
    spot_percent   = 101
    drain_seconds  = 144001
    release_keys   = ["untrusted comment: minisign public key"]
  }

  expect_failures = [var.role, var.max_size, var.instance_types, var.spot_percent, var.drain_seconds, var.release_keys]
}

run "boot_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/boot"
  }

  variables {
    settings = { A = "b\nC=d" }
  }

  expect_failures = [var.settings]
}

run "a_group_says_how_it_is_scaled_and_its_instances_do_not" {
  command = plan

  module {
    source = "../modules/node-group"
  }

  variables {
    scaling_tags = { Scaling = "sluice", Slots = "4" }
  }

  assert {
    condition     = { for name, tag in aws_autoscaling_group_tag.scaling : name => tag.tag[0].value } == { Scaling = "sluice", Slots = "4" }
    error_message = "A tag each."
  }

  assert {
    condition     = !anytrue([for tag in aws_autoscaling_group_tag.scaling : tag.tag[0].propagate_at_launch])
    error_message = "An instance has no use for them, and would keep old ones."
  }
}
