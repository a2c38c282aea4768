output "dns_name" {
  description = "Name to point your own DNS name at."
  value       = aws_lb.this.dns_name
}

output "target_group_arn" {
  description = "Target group for the web nodes."
  value       = aws_lb_target_group.this.arn
}
