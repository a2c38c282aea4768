# Schedulers and web: two schedulers at least, HTTPS only, names inside the VPC.

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
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/x" }
  }

  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 7 }
  }

  mock_resource "aws_lb" {
    defaults = { arn = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/w/1", dns_name = "w.elb.amazonaws.com" }
  }

  mock_resource "aws_lb_target_group" {
    defaults = { arn = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/w/1" }
  }

  mock_resource "aws_lb_listener" {
    defaults = { arn = "arn:aws:elasticloadbalancing:us-east-1:123456789012:listener/app/w/1/2" }
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

variables {
  env             = "test"
  region          = "us-east-1"
  account_id      = "123456789012"
  state_bucket    = "sluice-test-state"
  release         = "0123456789ab"
  engines         = { database_url = "postgresql://h/db", broker_url = "redis://h/0" }
  certificate_arn = "arn:aws:acm:us-east-1:123456789012:certificate/c"

  # for the module alone
  name                = "sluice-test-web"
  vpc_id              = "vpc-1"
  subnet_ids          = ["subnet-1a", "subnet-1b"]
  security_group_id   = "sg-0l"
  health_path         = "/health"
  deletion_protection = true
}

run "two_schedulers_and_a_web" {
  command = plan

  module {
    source = "../stacks/control"
  }

  assert {
    condition     = output.groups == { scheduler = "sluice-test-scheduler", web = "sluice-test-web" } && output.web_dns_name == null
    error_message = "A group each; no load balancer unless asked for."
  }
}

run "https_only_and_no_figures_outside" {
  command = plan

  module {
    source = "../modules/load-balancer"
  }

  assert {
    condition     = aws_lb_listener.https.protocol == "HTTPS" && startswith(aws_lb_listener.https.ssl_policy, "ELBSecurityPolicy-TLS13")
    error_message = "HTTPS, of this decade."
  }

  assert {
    condition     = aws_lb.this.enable_deletion_protection && aws_lb.this.drop_invalid_header_fields
    error_message = "Protected."
  }

  assert {
    condition     = aws_lb_listener_rule.metrics.action[0].fixed_response[0].status_code == "403"
    error_message = "/metrics is not for outside."
  }
}

run "names_inside_the_vpc" {
  command = plan

  module {
    source = "../modules/private-dns"
  }

  variables {
    zone  = "sluice-test.internal"
    names = { database = "db.rds.amazonaws.com" }
  }

  assert {
    condition     = aws_route53_record.name["database"].name == "database.sluice-test.internal" && length(aws_route53_zone.this.vpc) == 1
    error_message = "A private zone with the name."
  }
}

run "private_dns_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/private-dns"
  }

  variables {
    zone  = "sluice-test.internal."
    names = {}
  }

  expect_failures = [var.zone]
}

run "load_balancer_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/load-balancer"
  }

  variables {
    certificate_arn = "web.example.com"
  }

  expect_failures = [var.certificate_arn]
}

run "control_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../stacks/control"
  }

  variables {
    schedulers      = { nodes = 1 }
    web             = { instance_types = [] }
    load_balancer   = true
    certificate_arn = ""
  }

  expect_failures = [var.schedulers, var.web, var.certificate_arn]
}
