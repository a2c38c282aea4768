output "log_group_name" {
  description = "CloudWatch log group with the record."
  value       = aws_cloudwatch_log_group.this.name
}

output "dead_letter_queue" {
  description = "Name of the queue with the events that could not be recorded."
  value       = aws_sqs_queue.dead_letters.name
}
