output "instance_profile_name" {
  description = "Name of the instance profile, known before it exists."
  value       = var.name
}

output "instance_profile_arn" {
  description = "The instance profile once it exists."
  value       = aws_iam_instance_profile.node.arn
}
