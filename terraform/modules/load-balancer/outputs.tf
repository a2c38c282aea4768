output "dns_name" {
  description = "Name to point your own DNS name at."
  value       = aws_lb.this.dns_name
}

output "metric_dimensions" {
  description = "What CloudWatch calls the load balancer and its target group."
  value       = { LoadBalancer = aws_lb.this.arn_suffix, TargetGroup = aws_lb_target_group.this.arn_suffix }
}

output "target_group_arn" {
  description = "Target group for the web nodes."
  value       = aws_lb_target_group.this.arn
}
