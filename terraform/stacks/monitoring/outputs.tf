output "instance_id" {
  description = "The host, for `aws ssm start-session --target`."
  value       = module.host.instance_id
}

output "private_ip" {
  description = "Its address in the VPC."
  value       = module.host.private_ip
}

output "topic_arn" {
  description = "SNS topic with every alert."
  value       = aws_sns_topic.alerts.arn
}

output "alarms" {
  description = "CloudWatch's alarms, by name."
  value       = module.alarms.names
}

output "event_log_group" {
  description = "CloudWatch log group that records which instances came and went."
  value       = module.lifecycle_events.log_group_name
}
