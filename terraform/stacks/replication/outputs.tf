output "task_arns" {
  description = "Replication task by source; null where nothing is replicated."
  value       = one(module.replication[*].task_arns)
}

output "security_group_id" {
  description = "Security group that sources must let in; null where nothing is replicated."
  value       = one(module.replication[*].security_group_id)
}
