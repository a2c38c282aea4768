output "id" {
  description = "Identifier of the instance, as CloudWatch knows it."
  value       = aws_db_instance.this.identifier
}

output "address" {
  description = "Host name, without port."
  value       = aws_db_instance.this.address
}

output "url" {
  description = "URL without user and password; TLS only."
  value       = "postgresql://${aws_db_instance.this.address}:${aws_db_instance.this.port}/${aws_db_instance.this.db_name}?sslmode=require"
}

output "secret_arn" {
  description = "Secret holding {username, password}."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
