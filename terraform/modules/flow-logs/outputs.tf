output "log_group_name" {
  description = "CloudWatch log group with the records."
  value       = aws_cloudwatch_log_group.this.name
}
