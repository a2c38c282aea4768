output "role_arn" {
  description = "Role for the CI job to assume."
  value       = aws_iam_role.ci.arn
}
