# Subnets by zone, ways out, and who may talk to whom.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-east-1:123456789012:log-group:flow" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/flow" }
  }

  mock_data "aws_availability_zones" {
    defaults = { names = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"] }
  }
}

variables {
  name          = "sluice-test"
  region        = "us-east-1"
  cidr          = "10.40.0.0/16"
  zones         = 3
  nat_gateways  = "one-per-zone"
  dns_hostnames = true
  vpc_id        = "vpc-1"
  user_cidrs    = ["203.0.113.0/24"]
}

run "three_zones_have_three_of_each" {
  command = plan

  module {
    source = "../modules/network"
  }

  assert {
    condition     = length(aws_subnet.private) == 3 && length(aws_subnet.public) == 3 && length(aws_subnet.data) == 3
    error_message = "A tier has one subnet in each zone."
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3
    error_message = "One NAT gateway in each zone was asked for."
  }

  assert {
    condition     = !anytrue([for subnet in aws_subnet.public : coalesce(subnet.map_public_ip_on_launch, false)])
    error_message = "Nothing gets a public address by accident."
  }

  assert {
    condition     = length(setintersection(toset([for s in aws_subnet.private : s.cidr_block]), toset([for s in aws_subnet.data : s.cidr_block]))) == 0
    error_message = "Tiers do not share addresses."
  }
}

run "one_nat_serves_every_zone" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    zones        = 2
    nat_gateways = "one"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.nat) == 2
    error_message = "One gateway, and a route to it from each zone."
  }
}

run "roles_refer_to_each_other" {
  command = plan

  module {
    source = "../modules/security-groups"
  }

  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_ingress_rule.allowed : rule.cidr_ipv4 == null])
    error_message = "Between roles a group is named, never an address."
  }

  assert {
    condition     = length(setsubtract(keys(aws_vpc_security_group_ingress_rule.allowed), [for pair in setproduct(["web", "scheduler", "worker"], ["database", "broker"]) : join("-", pair)])) == 1
    error_message = "Nodes reach both engines; beside that only the load balancer reaches the web."
  }

  assert {
    condition     = !anytrue([for rule in concat(values(aws_vpc_security_group_ingress_rule.allowed), values(aws_vpc_security_group_ingress_rule.users)) : rule.from_port <= 22 && rule.to_port >= 22])
    error_message = "Nobody may come in by SSH."
  }

  assert {
    condition     = keys(aws_vpc_security_group_ingress_rule.users) == ["203.0.113.0/24"]
    error_message = "Only user_cidrs reach the load balancer."
  }
}

run "endpoints_answer_inside_the_vpc_only" {
  command = plan

  module {
    source = "../modules/endpoints"
  }

  variables {
    subnet_ids = ["subnet-0a", "subnet-0b"]
    services   = ["ssm", "secretsmanager"]
  }

  assert {
    condition     = alltrue([for endpoint in aws_vpc_endpoint.this : endpoint.private_dns_enabled && endpoint.vpc_endpoint_type == "Interface"])
    error_message = "Nodes find the services by their usual names."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.vpc.cidr_ipv4 == var.cidr
    error_message = "Nothing outside the VPC reaches them."
  }
}

run "flow_logs_keep_everything_for_a_time" {
  command = plan

  module {
    source = "../modules/flow-logs"
  }

  variables {
    account_id               = "123456789012"
    retention_days           = 30
    permissions_boundary_arn = "arn:aws:iam::123456789012:policy/boundary"
  }

  assert {
    condition     = aws_flow_log.this.traffic_type == "ALL" && aws_cloudwatch_log_group.this.retention_in_days == 30
    error_message = "All traffic, kept as long as asked for."
  }

  assert {
    condition     = aws_iam_role.this.permissions_boundary == "arn:aws:iam::123456789012:policy/boundary"
    error_message = "The boundary bounds this role too."
  }
}

run "network_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/network"
  }

  variables {
    zones        = 1
    cidr         = "10.40.0.0/33"
    nat_gateways = "none"
  }

  expect_failures = [var.zones, var.cidr, var.nat_gateways]
}

run "security_groups_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/security-groups"
  }

  variables {
    user_cidrs = ["203.0.113.7"]
  }

  expect_failures = [var.user_cidrs]
}

run "endpoints_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/endpoints"
  }

  variables {
    subnet_ids = ["subnet-0a"]
    services   = ["ssm", "ssm"]
  }

  expect_failures = [var.services]
}

run "flow_logs_refuses_what_is_wrong" {
  command = plan

  module {
    source = "../modules/flow-logs"
  }

  variables {
    account_id     = "123456789012"
    retention_days = 31
  }

  expect_failures = [var.retention_days]
}

run "network_stack_refuses_endpoints_that_nothing_finds" {
  command = plan

  module {
    source = "../stacks/network"
  }

  variables {
    env                 = "test"
    account_id          = "123456789012"
    state_bucket        = "sluice-test-state"
    dns_hostnames       = false
    interface_endpoints = ["ssm"]
  }

  expect_failures = [var.interface_endpoints]
}
