output "task_arns" {
  description = "Replication task by source."
  value       = { for name, task in aws_dms_replication_task.this : name => task.replication_task_arn }
}

output "security_group_id" {
  description = "Security group that sources must let in."
  value       = aws_security_group.this.id
}
