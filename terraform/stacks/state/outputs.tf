output "state_bucket" {
  description = "The bucket."
  value       = module.bucket.name
}

output "ci_role_arn" {
  description = "Role for CI jobs to assume; null without one."
  value       = one(module.ci[*].role_arn)
}
