output "url" {
  description = "PostgreSQL without user and password, TLS only; null without a warehouse."
  value       = one(module.database[*].url)
}

output "secret_arn" {
  description = "Secret holding {username, password} of its owner, for `secret_arns` of the workers; null without a warehouse."
  value       = one(module.database[*].secret_arn)
}

output "security_group_id" {
  description = "Security group of the warehouse; null without one."
  value       = one(aws_security_group.warehouse[*].id)
}
