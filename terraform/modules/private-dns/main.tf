# Names inside the VPC, so that people and exporters need not know AWS's own.

resource "aws_route53_zone" "this" {
  # checkov:skip=CKV2_AWS_38:DNSSEC signing is for public zones only
  # checkov:skip=CKV2_AWS_39:query logging is for public zones only
  name          = var.zone
  force_destroy = true # only names are in it, and they can be made again

  vpc {
    vpc_id = var.vpc_id
  }
}

resource "aws_route53_record" "name" {
  for_each = var.names
  zone_id  = aws_route53_zone.this.zone_id
  name     = "${each.key}.${var.zone}"
  type     = "CNAME"
  ttl      = 30 # seconds: a failover moves the address behind the name, not the name
  records  = [each.value]
}
