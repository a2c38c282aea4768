# One group for each role, and who may talk to whom. Nobody may log in: shells go through Session Manager.

locals {
  roles = {
    load-balancer = "the web's load balancer"
    web           = "web nodes"
    scheduler     = "scheduler nodes"
    worker        = "worker nodes"
    database      = "PostgreSQL"
    broker        = "Valkey"
  }
  nodes = ["web", "scheduler", "worker"]

  allowed = merge(
    { for node in local.nodes : "${node}-database" => { from = node, to = "database", port = 5432 } },
    { for node in local.nodes : "${node}-broker" => { from = node, to = "broker", port = 6379 } },
    { load-balancer-web = { from = "load-balancer", to = "web", port = 8080 } },
  )
}

resource "aws_security_group" "role" {
  # checkov:skip=CKV2_AWS_5:they are for the nodes and engines of the other stacks
  for_each    = local.roles
  name        = "${var.name}-${each.key}"
  description = each.value
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-${each.key}" }
}

resource "aws_vpc_security_group_ingress_rule" "allowed" {
  for_each                     = local.allowed
  security_group_id            = aws_security_group.role[each.value.to].id
  referenced_security_group_id = aws_security_group.role[each.value.from].id
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
  description                  = "${each.value.from} to ${each.value.to}"
}

resource "aws_vpc_security_group_ingress_rule" "users" {
  for_each          = toset(var.user_cidrs)
  security_group_id = aws_security_group.role["load-balancer"].id
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  description       = "users"
}

# Pipelines talk to whatever they are written for.
resource "aws_vpc_security_group_egress_rule" "nodes" {
  for_each          = toset(local.nodes)
  security_group_id = aws_security_group.role[each.key].id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  description       = "anywhere"
}

resource "aws_vpc_security_group_egress_rule" "load_balancer" {
  security_group_id            = aws_security_group.role["load-balancer"].id
  referenced_security_group_id = aws_security_group.role["web"].id
  ip_protocol                  = "tcp"
  from_port                    = 8080
  to_port                      = 8080
  description                  = "web nodes only"
}
