output "zone_id" {
  description = "The zone, to add names to."
  value       = aws_route53_zone.this.zone_id
}
