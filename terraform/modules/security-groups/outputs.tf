output "ids" {
  description = "Group id by role: load-balancer, web, scheduler, worker, database, broker."
  value       = { for role, group in aws_security_group.role : role => group.id }
}
