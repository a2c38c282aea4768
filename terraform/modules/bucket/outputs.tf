output "name" {
  description = "Name of the bucket, once what is written to it is encrypted, private and allowed."
  value       = aws_s3_bucket_policy.this.bucket
}

output "url" {
  description = "s3:// URL of the bucket."
  value       = "s3://${aws_s3_bucket.this.id}"
}
