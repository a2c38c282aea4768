output "url" {
  description = "s3:// URL of the bucket."
  value       = "s3://${aws_s3_bucket.this.id}"
}
