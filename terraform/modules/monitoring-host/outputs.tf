output "instance_id" {
  description = "The host, for `aws ssm start-session`."
  value       = aws_instance.this.id
}

output "private_ip" {
  description = "Its address in the VPC."
  value       = aws_instance.this.private_ip
}

output "security_group_id" {
  description = "Its security group."
  value       = aws_security_group.this.id
}
