# What CloudWatch watches even when the monitoring host is down: the parts that everything stands on.

locals {
  # metric, where it is, and when it is wrong. `missing`: what no figure means.
  alarms = merge(
    {
      heartbeat = {
        text      = "No heartbeat run has succeeded for ${var.heartbeat_minutes} minutes: nothing is being scheduled or executed."
        namespace = "Sluice", metric = "Heartbeat", dimensions = { Env = var.env }
        statistic = "Sum", comparison = "LessThanThreshold", threshold = 1, minutes = var.heartbeat_minutes, missing = "breaching"
      }
      database-cpu = {
        text      = "The database's CPU has been above ${var.database.cpu_percent} % for 10 minutes."
        namespace = "AWS/RDS", metric = "CPUUtilization", dimensions = { DBInstanceIdentifier = var.database.id }
        statistic = "Average", comparison = "GreaterThanThreshold", threshold = var.database.cpu_percent, minutes = 10, missing = "notBreaching"
      }
      database-storage = {
        text      = "The database has less than ${var.database.free_gb} GiB of storage left."
        namespace = "AWS/RDS", metric = "FreeStorageSpace", dimensions = { DBInstanceIdentifier = var.database.id }
        statistic = "Minimum", comparison = "LessThanThreshold", threshold = var.database.free_gb * 1024 * 1024 * 1024, minutes = 5, missing = "notBreaching"
      }
      database-connections = {
        text      = "The database has more than ${var.database.connections} connections."
        namespace = "AWS/RDS", metric = "DatabaseConnections", dimensions = { DBInstanceIdentifier = var.database.id }
        statistic = "Maximum", comparison = "GreaterThanThreshold", threshold = var.database.connections, minutes = 5, missing = "notBreaching"
      }
      lifecycle-dead-letters = {
        text      = "Lifecycle events of instances could not be delivered; they are in the queue ${var.dead_letter_queue}."
        namespace = "AWS/SQS", metric = "ApproximateNumberOfMessagesVisible", dimensions = { QueueName = var.dead_letter_queue }
        statistic = "Maximum", comparison = "GreaterThanThreshold", threshold = 0, minutes = 5, missing = "notBreaching"
      }
    },
    {
      for member in var.broker.members : "broker-memory-${member}" => {
        text      = "The broker's node ${member} has used more than ${var.broker.memory_percent} % of its memory; when it is full it refuses messages."
        namespace = "AWS/ElastiCache", metric = "DatabaseMemoryUsagePercentage", dimensions = { CacheClusterId = member }
        statistic = "Maximum", comparison = "GreaterThanThreshold", threshold = var.broker.memory_percent, minutes = 5, missing = "notBreaching"
      }
    },
    var.web == null ? {} : {
      web-unhealthy = {
        text      = "The load balancer has found a web node unhealthy for 10 minutes."
        namespace = "AWS/ApplicationELB", metric = "UnHealthyHostCount", dimensions = var.web
        statistic = "Minimum", comparison = "GreaterThanThreshold", threshold = 0, minutes = 10, missing = "notBreaching"
      }
    },
  )
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each            = local.alarms
  alarm_name          = "sluice-${var.env}-${each.key}"
  alarm_description   = each.value.text
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = each.value.comparison
  threshold           = each.value.threshold
  period              = 60 # seconds
  evaluation_periods  = each.value.minutes
  datapoints_to_alarm = each.value.minutes # for all of that time
  treat_missing_data  = each.value.missing
  alarm_actions       = [var.topic_arn]
  ok_actions          = [var.topic_arn]
}
