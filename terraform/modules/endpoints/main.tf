# AWS's own services inside the VPC: what the nodes ask of them goes neither over NAT nor over the internet.

resource "aws_security_group" "this" {
  name        = "${var.name}-endpoints"
  description = "AWS services inside the VPC"
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-endpoints" }
}

# Anything in the VPC resolves the services' names to these addresses, so anything in it must reach them.
resource "aws_vpc_security_group_ingress_rule" "vpc" {
  security_group_id = aws_security_group.this.id
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  description       = "the VPC"
}

resource "aws_vpc_endpoint" "this" {
  for_each            = toset(var.services)
  vpc_id              = var.vpc_id
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = var.subnet_ids
  security_group_ids  = [aws_security_group.this.id]
  tags                = { Name = "${var.name}-${each.key}" }
}
