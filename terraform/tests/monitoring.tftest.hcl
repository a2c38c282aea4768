# Who watches, and when it says something.

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

  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:us-east-1:123456789012:alerts" }
  }

  mock_resource "aws_sqs_queue" {
    defaults = { arn = "arn:aws:sqs:us-east-1:123456789012:dead" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:events" }
  }

  mock_resource "aws_cloudwatch_event_rule" {
    defaults = { arn = "arn:aws:events:us-east-1:123456789012:rule/r" }
  }
}

override_data {
  target = data.terraform_remote_state.network
  values = {
    outputs = {
      vpc_id             = "vpc-1"
      zones              = ["us-east-1a", "us-east-1b"]
      private_subnet_ids = ["subnet-0a", "subnet-0b"]
      public_subnet_ids  = ["subnet-1a", "subnet-1b"]
      data_subnet_ids    = ["subnet-2a", "subnet-2b"]
      security_group_ids = { load-balancer = "sg-0l", web = "sg-0w", scheduler = "sg-0s", worker = "sg-0a", database = "sg-0d", broker = "sg-0b" }
    }
  }
}

override_data {
  target = data.terraform_remote_state.data
  values = {
    outputs = {
      database_id    = "sluice-test"
      broker_members = ["sluice-test-001", "sluice-test-002"]
      kms_key_arn    = "arn:aws:kms:us-east-1:123456789012:key/k"
    }
  }
}

override_data {
  target = data.terraform_remote_state.control
  values = {
    outputs = {
      private_zone          = { id = "Z1", name = "sluice-test.internal" }
      web_metric_dimensions = { LoadBalancer = "app/w/1", TargetGroup = "targetgroup/w/1" }
    }
  }
}

variables {
  env               = "test"
  region            = "us-east-1"
  account_id        = "123456789012"
  state_bucket      = "sluice-test-state"
  release           = "0123456789ab"
  alert_emails      = ["ops@example.com"]
  topic_arn         = "arn:aws:sns:us-east-1:123456789012:alerts"
  database          = { id = "sluice-test" }
  broker            = { members = ["sluice-test-001"] }
  dead_letter_queue = "dead"

  # for the host alone
  name                    = "sluice-test-monitoring"
  vpc_id                  = "vpc-1"
  subnet_id               = "subnet-0a"
  zone                    = "us-east-1a"
  node_security_group_ids = { scheduler = "sg-0s", web = "sg-0w", worker = "sg-0a" }
  artifacts_bucket        = "a"
  kms_key_arn             = "arn:aws:kms:us-east-1:123456789012:key/k"
  instance_type           = "t3.medium"
  volume_gb               = 50
  retention_days          = 90
}

run "every_alarm_that_was_promised" {
  command = plan

  module {
    source = "../stacks/monitoring"
  }

  assert {
    condition     = output.alarms == sort([for name in ["heartbeat", "database-cpu", "database-storage", "database-connections", "lifecycle-dead-letters", "broker-memory-sluice-test-001", "broker-memory-sluice-test-002", "web-unhealthy"] : "sluice-test-${name}"])
    error_message = "One alarm for each thing that everything stands on."
  }

  assert {
    condition     = length(aws_route53_record.host) == 1 && aws_sns_topic.alerts.kms_master_key_id == "arn:aws:kms:us-east-1:123456789012:key/k"
    error_message = "Found by name; the topic is encrypted with a key that alarms may use."
  }
}

run "silence_is_an_alarm" {
  command = plan

  module {
    source = "../modules/alarms"
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.this["heartbeat"].treat_missing_data == "breaching"
    error_message = "No figure at all is the worst figure."
  }

  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : contains(alarm.alarm_actions, var.topic_arn) && contains(alarm.ok_actions, var.topic_arn)])
    error_message = "Everybody hears of it, and of its end."
  }

  assert {
    condition     = !contains(keys(aws_cloudwatch_metric_alarm.this), "web-unhealthy")
    error_message = "No alarm for a load balancer that is not there."
  }
}

run "what_the_host_promises" {
  command = plan

  module {
    source = "../modules/monitoring-host"
  }

  assert {
    condition     = aws_instance.this.metadata_options[0].http_tokens == "required"
    error_message = "IMDSv2 only."
  }

  assert {
    condition     = aws_ebs_volume.figures.encrypted && aws_ebs_volume.figures.size == 50
    error_message = "What was measured is on a volume of its own."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.scrape["scheduler-5555"].security_group_id == "sg-0s"
    error_message = "Flower is reached from here."
  }

  assert {
    condition     = alltrue([for rule in concat(values(aws_vpc_security_group_ingress_rule.scrape), values(aws_vpc_security_group_ingress_rule.push)) : rule.cidr_ipv4 == null])
    error_message = "Between roles a group is named, never an address."
  }
}

run "events_that_cannot_be_recorded_are_kept" {
  command = plan

  module {
    source = "../modules/lifecycle-events"
  }

  assert {
    condition     = alltrue([for target in aws_cloudwatch_event_target.record : length(target.dead_letter_config) == 1]) && length(aws_cloudwatch_event_target.record) == 2
    error_message = "Groups and spot notices, with a dead letter queue."
  }

  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.this["groups"].event_pattern).detail.AutoScalingGroupName[0].prefix == "sluice-test-"
    error_message = "Only this environment's groups."
  }
}

run "alarms_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/alarms"
  }

  variables {
    heartbeat_minutes = 1
    database          = { id = "d", cpu_percent = 110 }
    broker            = { members = [], memory_percent = 100 }
  }

  expect_failures = [var.heartbeat_minutes, var.database, var.broker]
}

run "monitoring_host_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/monitoring-host"
  }

  variables {
    scrape       = { web = [22] }
    volume_gb    = 1
    release_keys = ["RW"]
  }

  expect_failures = [var.scrape, var.volume_gb, var.release_keys]
}

run "lifecycle_events_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/lifecycle-events"
  }

  variables {
    retention_days = 31
  }

  expect_failures = [var.retention_days]
}

run "monitoring_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../stacks/monitoring"
  }

  variables {
    alert_emails = ["ops"]
  }

  expect_failures = [var.alert_emails]
}
